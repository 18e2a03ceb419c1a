"""Two processes of two devices each train as one process of four does, whole weights or slices; with gloo on a CPU."""

import json
import os

import pytest
import torch
from helpers.launch import train
from helpers.runs import untimed
from safetensors.torch import load_file

pytest.importorskip("jax")

pytestmark = [pytest.mark.slow, pytest.mark.long]  # every process compiles
COUNT = "--xla_force_host_platform_device_count="


@pytest.fixture(scope="module")
def launch(small, tmp_path_factory):
    """A function of a number of processes, of devices of each, and of settings; returns what the run left."""
    folder = tmp_path_factory.mktemp("processes")

    def launch(processes, devices, name, *settings):
        others = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(COUNT)]
        flags = " ".join([*others, f"{COUNT}{devices}"])
        done = train(processes, [*small, "backend=jax", f"run={name}", *settings], folder, {"XLA_FLAGS": flags})
        assert done.returncode == 0, done.stderr
        return folder / "multirun" / name

    return launch


def metrics(run):
    return untimed(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))


def test_two_processes_are_one(launch):
    """Records, images, checkpoints and exports; paused with whole weights, gone on with in slices."""
    one = launch(1, 4, "one", "micro_batch_size=8")
    launch(2, 2, "two", "micro_batch_size=4", "stop_at=5")
    two = launch(2, 2, "two", "micro_batch_size=4", "backend.weights=sliced")
    facts = json.loads((two / "run.json").read_text())
    assert (facts["backend"], facts["devices"], facts["num_processes"]) == ("jax", 4, 2)
    assert facts["attention"] == "jax"
    for ours, theirs in zip(metrics(two), metrics(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for file in (
        "model/unet/diffusion_pytorch_model",
        "checkpoints/step-000010/denoiser",
        "checkpoints/step-000010/ema",
    ):
        ours, theirs = (load_file(run / f"{file}.safetensors") for run in (two, one))
        assert ours.keys() == theirs.keys()
        for key, weight in theirs.items():
            torch.testing.assert_close(ours[key], weight, rtol=1e-5, atol=1e-6)
    files = [{str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()} for run in (one, two)]
    assert files[0] == files[1]
