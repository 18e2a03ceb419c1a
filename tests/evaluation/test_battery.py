import diffusers
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator

from t2i.data.datasets import openmoji
from t2i.data.latent_cache import encode
from t2i.diffusion.process import Diffusion
from t2i.evaluation.battery import make_battery, summary
from t2i.models.stable_diffusion import load
from t2i.runs.errors_file import write_errors

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def diffusion(prediction_type="v_prediction"):
    return Diffusion.from_scheduler(diffusers.DDPMScheduler(prediction_type=prediction_type, **SD15))


@pytest.fixture(scope="module")
def encoded(small_pipeline, tmp_path_factory):
    return encode(openmoji(64, {"food": 1.0}).validation, load(str(small_pipeline)), tmp_path_factory.mktemp("cache"))


def battery(encoded, seed=0, items=3, timesteps=16):
    return make_battery(encoded, np.ones(len(encoded)), diffusion(), seed, items, timesteps)


class Oracle:
    """Knows x0 and says it with a fixed relative error, in the space of its prediction type."""

    def __init__(self, battery, diffusion, error):
        self.battery, self.diffusion, self.error = battery, diffusion, error

    def denoise(self, x, t, text):
        alpha, sigma = (table[t][:, None, None, None] for table in (self.diffusion.alpha, self.diffusion.sigma))
        cells = text["encoder_hidden_states"][:, 0, 0].long()
        x0 = torch.stack([self.battery.x0[cell] for cell in cells]).double() * (1 + self.error)
        epsilon = (x.double() - alpha * x0) / sigma
        v = alpha * epsilon - sigma * x0
        return {"epsilon": epsilon, "v_prediction": v, "sample": x0}[self.diffusion.prediction_type]


def number_the_items(battery):
    """Let the oracle recognise the image by its embedding."""
    text = battery.text["encoder_hidden_states"].clone()
    text[:, 0, 0] = torch.arange(len(text))
    object.__setattr__(battery, "text", {"encoder_hidden_states": text})
    return battery


def test_the_battery_is_fixed_by_its_seed_and_the_images(encoded):
    assert battery(encoded).hash == battery(encoded).hash
    others = [battery(encoded, seed=1), battery(encoded, items=2), battery(encoded, timesteps=8)]
    assert len({battery(encoded).hash, *(other.hash for other in others)}) == 4
    cells = np.arange(8)
    assert torch.equal(battery(encoded).noise(cells), battery(encoded, items=2).noise(cells))
    assert not torch.equal(battery(encoded).noise(cells), battery(encoded, seed=1).noise(cells))


def test_images_are_chosen_by_weight(encoded):
    """Those of weight 0 never, and the others spread evenly."""
    weights = np.zeros(len(encoded))
    weights[[1, 3]] = 1.0
    fixed = make_battery(encoded, weights, diffusion(), 0, 8, 4)
    assert np.array_equal(torch.stack(fixed.x0), encoded.moments([1, 3])[0])


def test_timesteps_are_stratified_and_have_signal(encoded):
    t = battery(encoded, timesteps=10).t
    assert t.tolist() == [50 + 100 * k for k in range(10)]
    zero_terminal = Diffusion.from_scheduler(
        diffusers.DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", **SD15)
    )
    every_step = make_battery(encoded, np.ones(len(encoded)), zero_terminal, 0, 1, 1000).t
    assert every_step.tolist() == list(range(999))


def test_the_ratio_of_two_runs_is_the_same_in_every_space(encoded):
    """Also between models of different prediction types: all say an x0 that is wrong by 10 % or by 20 %."""
    fixed = number_the_items(battery(encoded))
    losses = {}
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        for error in (0.1, 0.2):
            process = diffusion(prediction_type)
            errors = fixed.errors(Oracle(fixed, process, error), process, Accelerator(cpu=True))
            losses[prediction_type, error] = summary(errors, process, fixed.t)["loss"]
            snr, sigma = process.snr.numpy()[fixed.t], process.sigma.numpy()[fixed.t]
            for name, scale in {"x0": 1 / snr, "v": 1 / (snr * sigma**2)}.items():
                losses[prediction_type, error, name] = np.exp(np.log((errors * scale).mean(0)).mean())
    runs = [
        (prediction_type, error) for prediction_type in ("epsilon", "v_prediction", "sample") for error in (0.1, 0.2)
    ]
    for first in runs:
        assert losses[first] == pytest.approx(losses["sample", first[1]], rel=1e-5)  # float32 latents
        for second in runs:
            ratio = losses[first] / losses[second]
            for space in ("x0", "v"):
                assert losses[*first, space] / losses[*second, space] == pytest.approx(ratio, rel=1e-6)


def test_summary_means(encoded):
    process, t = diffusion(), np.array([100, 500, 900])
    errors = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 4.0]])
    found = summary(errors, process, t)
    assert found["loss"] == pytest.approx((2 * 2 * 4) ** (1 / 3))
    assert found["eps_mse"] == pytest.approx(8 / 3)
    assert [found[f"snr_bin_{i}/eps"] for i in range(3)] == [4.0, 2.0, 2.0]


def test_errors_are_kept_image_by_image(encoded, tmp_path):
    fixed = battery(encoded)
    raw, averaged = np.random.default_rng(0).random((2, 3, 16))
    write_errors(tmp_path / "validation" / "step.parquet", fixed.t, {"": raw, "ema/": averaged})
    table = pq.read_table(tmp_path / "validation" / "step.parquet").to_pydict()
    row = 1 * 16 + 5
    assert (table["item"][row], table["timestep"][row]) == (1, fixed.t[5])
    assert (table["eps"][row], table["ema_eps"][row]) == (raw[1, 5], averaged[1, 5])


def test_images_of_several_sizes_have_the_errors_that_they_have_alone(encoded):
    """However they are mixed; each with its own noise."""

    class Blind:
        def denoise(self, x, t, text):
            return x * 0.5

    mixed = battery(encoded, items=3)
    mixed.x0[1] = mixed.x0[1][:, :8, :].clone()
    process = diffusion("epsilon")
    found = mixed.errors(Blind(), process, Accelerator(cpu=True))
    for item in range(3):
        for place in (0, 15):
            cell = np.array([item * 16 + place])
            t = torch.from_numpy(mixed.t[[place]])
            noised = process.add_noise(mixed.x0[item][None], mixed.noise(cell), t)
            assert found[item, place] == pytest.approx(
                (noised.x * 0.5 - noised.target).square().mean().item(), rel=1e-5
            )
