"""precision=fp16 on a CPU: slow, but the same loss scaling as on a GPU."""

import functools

import pytest
import torch
from helpers.runs import untimed
from safetensors.torch import load_file

LARGE = 2.0**40  # a loss scale at which every gradient overflows
SETTINGS = ("precision=fp16", "validate_every=0", "sample_every=0")


@pytest.fixture
def scaler(monkeypatch):
    """Call it with settings of the GradScaler of the next runs."""
    original = torch.amp.GradScaler
    return lambda **settings: monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(original, **settings))


def state(run, step):
    return torch.load(run.checkpoints / f"step-{step:06d}" / "scaler.pt", weights_only=True)


def trained(run, step):
    return load_file(run.checkpoints / f"step-{step:06d}" / "denoiser.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(train, tmp_path, scaler, adapter):
    """While its loss scale falls and grows."""
    scaler(init_scale=2.0**22, growth_interval=1)
    settings = (*SETTINGS, f"adapter={adapter}", "steps=8", "save_every=100")
    whole = train(tmp_path / "whole", *settings)
    train(tmp_path / "run", *settings, "stop_at=3")
    resumed = train(tmp_path / "run", *settings)
    assert state(resumed, 8) == state(whole, 8)
    fallen = sum(line["train/skipped"] for line in whole.metrics() if "train/skipped" in line)
    assert fallen > 0
    assert state(whole, 8)["scale"] > 2.0 ** (22 - fallen)
    assert untimed(resumed.metrics()) == untimed(whole.metrics())
    files = sorted(file.relative_to(whole.folder) for file in (whole.folder / "model").rglob("*.safetensors"))
    assert files
    for file in files:
        a, b = (load_file(run.folder / file) for run in (resumed, whole))
        assert all(torch.equal(a[key], b[key]) for key in b)


@pytest.mark.slow
def test_steps_that_overflow_while_the_scale_falls_are_skipped_and_end_no_run(train, tmp_path, scaler, caplog):
    """Each leaves the weights alone and halves the scale; only what overflows without scaling is a bad step."""
    scaler(init_scale=LARGE)
    caplog.set_level("INFO")
    run = train(tmp_path / "run", *SETTINGS, "steps=30", "max_bad_steps=2", "save_every=1", "keep_checkpoints=all")
    skipped = [line["train/skipped"] for line in run.metrics()]
    number = int(sum(skipped))
    assert number > 4
    assert skipped == [1] * number + [0] * (30 - number)
    assert state(run, 30)["scale"] == LARGE / 2**number
    first, before, after = (trained(run, step) for step in (1, number, number + 1))
    assert all(torch.equal(first[name], before[name]) for name in first)
    assert any(not torch.equal(after[name], before[name]) for name in first)
    assert "step 0 is skipped: its gradient overflows fp16 at a loss scale of 1.09951e+12" in caplog.text


@pytest.mark.slow
def test_gradients_are_unscaled_before_they_are_clipped(train, tmp_path):
    fp16, fp32 = (
        train(tmp_path / precision, *SETTINGS, f"precision={precision}", "max_grad_norm=1e-4", "steps=2")
        for precision in ("fp16", "fp32")
    )
    for ours, theirs in zip(fp16.metrics(), fp32.metrics(), strict=True):
        assert ours["train/grad_norm"] == pytest.approx(theirs["train/grad_norm"], rel=0.01)
        assert ours["train/clipped"] == theirs["train/clipped"] == 1


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_a_bad_step_at_any_scale(train, tmp_path, scaler, monkeypatch):
    import t2i.diffusion.losses

    original = t2i.diffusion.losses.MinSNR.__call__
    monkeypatch.setattr(t2i.diffusion.losses.MinSNR, "__call__", lambda *args: original(*args) * float("nan"))
    with pytest.raises(FloatingPointError, match=r"2 steps in a row .* the last at step 1"):
        train(tmp_path / "run", *SETTINGS, "max_bad_steps=2")
