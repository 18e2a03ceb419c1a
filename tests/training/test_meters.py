import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2i.evaluation.metrics import NUM_SNR_BINS
from t2i.training.meters import Meter

examples = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.integers(0, 999)), min_size=1, max_size=30)


def count(meter, rows, grad_norm=0.5):
    losses, unweighted, t = zip(*rows, strict=True)
    meter.examples(
        torch.tensor(losses).double(), torch.tensor(unweighted).double(), torch.tensor(t), torch.arange(len(t))
    )
    meter.step(0, torch.tensor(grad_norm))


@given(examples, examples)
def test_it_reads_means_over_examples_in_total_and_per_snr_bin(first, second):
    meter = Meter(batch_size=8, max_grad_norm=1.0, num_timesteps=1000, max_bad_steps=3)
    count(meter, first)
    count(meter, second)
    read, rows = meter.read(), first + second
    assert read["train/loss"] == pytest.approx(sum(row[0] for row in rows) / len(rows))
    assert read["train/loss_unweighted"] == pytest.approx(sum(row[1] for row in rows) / len(rows))
    for snr_bin in range(NUM_SNR_BINS):  # bin 0 holds the last, noisiest eighth of the timesteps
        inside = [row for row in rows if 7 - row[2] // 125 == snr_bin]
        assert (f"train/snr_bin_{snr_bin}/loss" in read) == bool(inside)
        if inside:
            mean = sum(row[0] for row in inside) / len(inside)
            assert read[f"train/snr_bin_{snr_bin}/loss"] == pytest.approx(mean)


def test_it_counts_clipped_steps_and_forgets_what_was_read():
    meter = Meter(batch_size=8, max_grad_norm=1.0, num_timesteps=1000, max_bad_steps=3)
    for grad_norm in (0.5, 1.5, 2.5, 3.5):
        count(meter, [(1.0, 1.0, 0)], grad_norm)
    read = meter.read()
    assert (read["train/grad_norm"], read["train/clipped"]) == (2.0, 0.75)
    count(meter, [(3.0, 3.0, 0)])
    assert meter.read()["train/loss"] == 3.0


def test_its_state_goes_into_a_checkpoint():
    meters = [Meter(batch_size=8, max_grad_norm=1.0, num_timesteps=1000, max_bad_steps=3) for _ in range(2)]
    count(meters[0], [(1.0, 2.0, 10)])
    meters[1].load_state_dict(meters[0].state_dict())
    for meter in meters:
        count(meter, [(3.0, 4.0, 20)])
    first, second = (meter.read() for meter in meters)
    speed = "speed/images_per_second"
    assert {**first, speed: 0} == {**second, speed: 0}
