"""The loop computes the same whatever the plumbing: bit for bit where the arithmetic is the same."""

import json
import os
import shutil
import signal

import pytest
import torch
from helpers.runs import untimed
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.distributed.processes import start
from t2i.training.step import clip_grad_norm


def weights(run, name="unet/diffusion_pytorch_model"):
    return load_file(run.folder / "model" / f"{name}.safetensors")


def metrics(run):
    return untimed(run.metrics())


def assert_same(first, second):
    """The same bits in every weight, raw and averaged, and in every metric."""
    for name in ("unet/diffusion_pytorch_model", "unet/diffusion_pytorch_model.non_ema"):
        ours, theirs = weights(first, name), weights(second, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert metrics(first) == metrics(second)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, float("nan")])
@pytest.mark.parametrize("max_norm", [1.0, float("inf")])
def test_gradients_are_clipped_as_pytorch_clips_them(scale, max_norm):
    """Bit for bit, and a weight without a gradient has none."""
    shapes = [(3, 4), (5,), (2, 2, 3)]
    theirs, ours = ([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    for weight in (theirs[0], ours[0], theirs[2], ours[2]):
        weight.grad = scale * torch.linspace(-1, 1, weight.numel()).view_as(weight) / 4
    norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(clip_grad_norm(start("no"), ours, max_norm), norm, rtol=0, atol=0, equal_nan=True)
    assert ours[1].grad is None
    for place in (0, 2):
        torch.testing.assert_close(ours[place].grad, theirs[place].grad, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def reference(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "reference")


def test_the_same_command_gives_the_same_bits(train, reference, tmp_path):
    assert_same(train(tmp_path / "again"), reference)


@pytest.mark.slow
def test_another_seed_gives_another_run(train, reference, tmp_path):
    assert metrics(train(tmp_path / "seed", "seed=1"))[-1] != metrics(reference)[-1]


@pytest.mark.slow
def test_workers_change_nothing(train, reference, tmp_path):
    assert_same(train(tmp_path / "workers", "num_workers=2"), reference)


def test_a_resumed_run_is_the_uninterrupted_run(train, reference, tmp_path):
    """The folder as a crash after step 7 leaves it: a checkpoint of step 5, and metrics that were logged after it."""
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000010")
    shutil.rmtree(folder / "model")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:8]) + '\n{"step": 8, "train/lo')
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"state": "running"}))

    resumed = train(folder)
    assert_same(resumed, reference)
    assert [line["step"] for line in resumed.metrics()] == list(range(11))


def test_a_finished_run_is_not_run_again(train, reference, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    before = (folder / "run.json").stat().st_mtime_ns
    assert train(folder).result == reference.result
    assert (folder / "run.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_accumulation_changes_rounding_only(train, tmp_path):
    """Losses and final weights of batches of 16 in one piece and in four, to 1e-5."""
    whole, parts = (
        train(tmp_path / str(size), "batch_size=16", f"micro_batch_size={size}", "scheduler=v_prediction")
        for size in (16, 4)
    )
    for ours, theirs in zip(metrics(parts), metrics(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    ours, theirs = weights(parts), weights(whole)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-5


@pytest.mark.slow
def test_gradient_checkpointing_changes_rounding_only(train, reference, tmp_path):
    recomputed = train(tmp_path / "run", "gradient_checkpointing=true")
    assert metrics(recomputed)[-1] == pytest.approx(metrics(reference)[-1], rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_levels_that_are_not_recomputed_change_rounding_only(train, reference, tmp_path, levels):
    """The network of the tests has two."""
    recomputed = train(tmp_path / "run", "gradient_checkpointing=true", f"checkpoint_levels={levels}")
    assert metrics(recomputed)[-1] == pytest.approx(metrics(reference)[-1], rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_compiling_changes_rounding_only(train, tmp_path):
    """The training step; to compile what samples and validates too would take minutes."""
    short = ("steps=3", "validate_every=0", "sample_every=0", "gradient_checkpointing=true")
    runs = [train(tmp_path / value, f"compile={value}", *short) for value in ("true", "false")]
    found, expected = (metrics(run) for run in runs)
    assert [line["step"] for line in found] == [1, 2, 3]
    for compiled, plain in zip(found, expected, strict=True):
        assert compiled["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-4)


@pytest.mark.slow
def test_channels_last_changes_rounding_only(train, reference, tmp_path):
    turned = train(tmp_path / "run", "channels_last=true")
    assert metrics(turned)[-1] == pytest.approx(metrics(reference)[-1], rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("override", ["loss=mse", "scheduler=v_prediction", "precision=bf16", "ema=none"])
def test_ten_steps_teach_something(train, tmp_path, override):
    """The error on held-out images falls."""
    lines = train(tmp_path / "run", override).metrics()
    assert lines[-1]["val/loss"] < lines[0]["val/loss"]


@pytest.mark.slow
def test_the_loss_does_not_touch_the_battery(train, tmp_path):
    """What is measured at step 0 is the same bits for every loss, batch size and number of workers, and again."""
    settings = [
        ("loss=mse",),
        ("loss=minsnr", "micro_batch_size=1"),
        ("loss=mse", "micro_batch_size=2", "num_workers=2"),
    ]
    runs = [train(tmp_path / str(i), *setting, "steps=0") for i, setting in enumerate(settings)]
    assert len({json.dumps(metrics(run)[0]) for run in runs}) == 1
    assert len({json.dumps(run.info["battery"]) for run in runs}) == 1


@pytest.mark.slow
def test_a_run_that_pauses_after_every_step_is_the_uninterrupted_run(train, reference, tmp_path):
    folder, pauses = tmp_path / "run", 0
    while not (run := train(folder, "max_hours=1e-9")).finished:
        pauses += 1
        assert run.info["state"] == "paused"
    assert pauses == 9
    assert_same(run, reference)


@pytest.mark.slow
def test_a_run_stops_where_it_is_told_and_goes_on_without(train, reference, tmp_path):
    run = train(tmp_path / "run", "stop_at=7")
    assert (run.info["state"], run.info["paused_at"]) == ("paused", 7)
    assert not (run.folder / "model").exists()
    assert_same(train(tmp_path / "run"), reference)


def poison(monkeypatch, calls):
    """Make the loss of the first example not finite in these calls (one a step)."""
    import t2i.diffusion.losses

    original, count = t2i.diffusion.losses.MinSNR.__call__, iter(range(1000))

    def poisoned(self, prediction, noised, weight=None):
        losses = original(self, prediction, noised, weight)
        return losses * torch.tensor([float("nan")] + [1.0] * (len(losses) - 1)) if next(count) in calls else losses

    monkeypatch.setattr(t2i.diffusion.losses.MinSNR, "__call__", poisoned)


@pytest.mark.slow
def test_a_step_without_a_finite_gradient_is_skipped_and_counted(train, tmp_path, monkeypatch, caplog):
    poison(monkeypatch, {3, 4})
    run = train(tmp_path / "run", "validate_every=0")
    assert [line["train/skipped"] for line in run.metrics()] == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert "step 3 is skipped: its gradient is not finite; loss not finite: timestep" in caplog.text
    assert all(weight.isfinite().all() for weight in weights(run).values())


@pytest.mark.slow
def test_many_of_them_in_a_row_end_the_run_with_the_images_and_timesteps(train, tmp_path, monkeypatch):
    poison(monkeypatch, range(4, 100))
    with pytest.raises(
        FloatingPointError, match=r"3 steps in a row .* step 6 .* timestep \d+ of image \d+.*optimizer.lr"
    ):
        train(tmp_path / "run", "validate_every=0", "max_bad_steps=3")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_a_dead_worker_is_replaced(train, reference, tmp_path, monkeypatch, caplog):
    """The worker kills itself at its fourth batch, once."""
    from t2i.data.cached_split import Examples

    original, marker = Examples.__getitems__, tmp_path / "dead"

    def deadly(self, positions):
        if positions[0] == 24 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, positions)

    monkeypatch.setattr(Examples, "__getitems__", deadly)
    assert_same(train(tmp_path / "run", "num_workers=1"), reference)
    assert marker.exists()
    assert "a data-loader worker died" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("option", ["ema=none", "lr_scheduler=cosine", "timesteps=stratified"])
def test_every_part_that_has_a_state_resumes(train, tmp_path, option):
    whole = train(tmp_path / "whole", option, "steps=4")
    train(tmp_path / "run", option, "steps=4", "stop_at=2")
    resumed = train(tmp_path / "run", option, "steps=4")
    assert metrics(resumed) == metrics(whole)
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_out_of_memory_names_what_helps(train, tmp_path, monkeypatch, device):
    def exhaust(*_):
        if device == "cpu":
            torch.empty(2**60, dtype=torch.uint8)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("t2i.models.stable_diffusion.StableDiffusion.denoise", exhaust)
    with pytest.raises(ConfigError, match=r"out of memory .*smaller micro_batch_size .*gradient_checkpointing=true"):
        train(tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["state"], info["error"].split(":")[0]) == ("failed", "out of memory")
