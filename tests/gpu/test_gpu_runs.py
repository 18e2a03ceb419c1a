"""Runs on a GPU against the same runs on the CPU, to tolerances; and against themselves, bit for bit.

`make test-gpu` runs them on a CUDA device. On a CPU the tests of runs that need no GPU are rehearsed (`long`).
"""

import json
import math

import pytest
import torch
from helpers.runs import untimed
from safetensors.torch import load_file

# Relative differences: of one prediction, and of what ten steps have made of it.
FORWARD = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 1e-2, "bf16_sr": 2e-2}
TRAINED = {"fp32": 1e-2, "bf16": 5e-2, "fp16": 5e-2, "bf16_sr": 5e-2}


def lines(run):
    assert run["problem"] is None
    return [json.loads(line) for line in (run["folder"] / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    """val/loss at the beginning and at the end."""
    measured = [line["val/loss"] for line in lines(run) if "val/loss" in line]
    return measured[0], measured[-1]


def weights(run):
    (newest,) = sorted((run["folder"] / "checkpoints").glob("step-*"))[-1:]
    return {
        f"{file.stem}.{name}": value for file in newest.glob("*.safetensors") for name, value in load_file(file).items()
    }


def timeless(run):
    return untimed(lines(run))


@pytest.fixture(scope="session")
def expected(on_cpu):
    """What the CPU makes of it, in float32."""
    return losses(on_cpu.train("expected", "precision=fp32", "sample_every=0"))


@pytest.mark.parametrize("precision", [*FORWARD])
def test_a_run_comes_out_as_on_the_cpu(on_device, expected, precision):
    before, after = losses(on_device.train(precision, f"precision={precision}"))
    assert before == pytest.approx(expected[0], rel=FORWARD[precision])
    assert after == pytest.approx(expected[1], rel=TRAINED[precision])


def test_tf32_is_used_where_it_is_asked_for_and_only_there(on_device, expected):
    """The switches are those of a run; that they act is seen in test_gpu_parts.py."""
    before, after = losses(on_device.train("tf32", "precision=fp32", "tf32=true", "cudnn_benchmark=true"))
    assert before == pytest.approx(expected[0], rel=FORWARD["bf16"])
    assert after == pytest.approx(expected[1], rel=TRAINED["bf16"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deterministic_repeats_and_resumes_bit_for_bit(on_device, precision):
    """And it does not matter whether checkpoints are written in the background."""
    settings = (f"precision={precision}", "deterministic=true", "sample_every=0", "save_every=2", "attention=math")
    whole = on_device.train(f"whole-{precision}", *settings, "save_in_background=false")
    again = on_device.train(f"again-{precision}", *settings, "save_in_background=true")
    on_device.train(f"parts-{precision}", *settings, "save_in_background=true", "stop_at=5")
    parts = on_device.train(f"parts-{precision}", *settings, "save_in_background=true")
    for run in (again, parts):
        assert timeless(run) == timeless(whole)
        assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(run).items())


@pytest.mark.parametrize("settings", [["attention=sdpa"], ["attention=math"], ["channels_last=true"]], ids=str)
def test_ways_to_compute_the_same(on_device, expected, settings):
    before, after = losses(on_device.train(settings[0], *settings, "precision=fp32"))
    assert before == pytest.approx(expected[0], rel=FORWARD["fp32"])
    assert after == pytest.approx(expected[1], rel=TRAINED["fp32"])


@pytest.mark.gpu
def test_xformers_comes_out_as_on_the_cpu(on_gpu, expected):
    pytest.importorskip("xformers")
    before, _ = losses(on_gpu.train("xformers", "attention=xformers", "precision=fp16"))
    assert before == pytest.approx(expected[0], rel=FORWARD["fp16"])


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["true", "reduce-overhead"])
def test_a_compiled_denoiser_comes_out_as_the_other(on_gpu, expected, mode):
    short = ["precision=fp32", "sample_every=0", "validation.items=4", "save_every=0", "micro_batch_size=8"]
    run = on_gpu.train(f"compiled-{mode}", f"compile={mode}", *short)
    plain = on_gpu.train("not-compiled", *short)
    for first, second in zip(lines(run), lines(plain), strict=True):
        for name in first.keys() & {"train/loss", "val/loss"}:
            assert first[name] == pytest.approx(second[name], rel=1e-2), (name, first["step"])


def test_out_of_memory_is_said_with_the_remedy_and_the_run_goes_on_with_smaller_micro_batches(on_device):
    large = ["batch_size=512", "steps=1", "validate_every=0", "sample_every=0", "save_every=1", "precision=fp32"]
    name = f"full-{on_device.name}"
    full = on_device.train(name, *large, "micro_batch_size=512", room=150 * 2**20)
    assert full["problem"].startswith("ConfigError: out of memory (")
    assert "a smaller micro_batch_size (the result is the same)" in full["problem"]
    info = json.loads((full["folder"] / "run.json").read_text())
    assert (info["state"], info["error"].partition(":")[0]) == ("failed", "out of memory")
    assert on_device.train(name, *large, "micro_batch_size=32")["problem"] is None


def test_nothing_waits_for_the_gpu_between_the_lines_of_the_log(on_device):
    """PyTorch itself raises where something does."""
    quiet = ["log_every=0", "validate_every=0", "sample_every=0", "save_every=0", "steps=8", "micro_batch_size=4"]
    for precision in ("fp32", "bf16", "bf16_sr"):
        run = on_device.train(f"strict-{precision}", *quiet, f"precision={precision}", waits=False)
        assert run["problem"] is None


def test_a_run_says_which_gpu_and_driver_it_had(on_device):
    run = on_device.train("facts", "steps=1", "sample_every=0", "validate_every=0")
    info = json.loads((run["folder"] / "run.json").read_text())
    known = [info[name] is not None for name in ("gpu", "driver")]
    assert known == [on_device.name == "cuda"] * 2
    assert math.isfinite(lines(run)[-1]["train/loss"])


@pytest.mark.gpu
def test_two_gpus_train_as_one(on_gpu, small, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    from helpers.launch import train

    settings = [*small, "precision=fp32", "sample_every=0", "run=two", "micro_batch_size=4"]
    both = train(2, settings, tmp_path, {"ACCELERATE_USE_CPU": "false"})
    assert both.returncode == 0, both.stderr
    two = {"problem": None, "folder": tmp_path / "multirun" / "two"}
    one = on_gpu.train("one", "precision=fp32", "sample_every=0", "micro_batch_size=8")
    assert losses(two) == pytest.approx(losses(one), rel=TRAINED["fp32"])
    assert json.loads((two["folder"] / "run.json").read_text())["num_processes"] == 2
