"""Two processes under `accelerate launch`, with gloo on the CPU: the same training as in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import free_port
from safetensors.torch import load_file

ACCELERATE = Path(sys.executable).parent / "accelerate"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def launch(small, folder):
    def launch(processes, *arguments, environment=None):
        program = [sys.executable, "-m", "t2i.train"]
        if processes > 1:
            program = [ACCELERATE, "launch", "--multi_gpu", "--num_processes", str(processes), "-m", "t2i.train"]
        size = [] if any("micro_batch_size" in argument for argument in arguments) else ["micro_batch_size=4"]
        settings = [*arguments, *small, "threads=1", *size]
        variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MASTER_PORT": free_port()}
        variables |= environment or {}
        return subprocess.run(
            [*program, *settings], cwd=folder, env=os.environ | variables, capture_output=True, text=True
        )

    return launch


@pytest.fixture(scope="module")
def one(launch, folder):
    """The folder of a run in one process, which takes each batch whole."""
    assert launch(1, "run=one", "micro_batch_size=8").returncode == 0
    return folder / "multirun" / "one"


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run):
    return load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_two_processes_train_as_one_does(launch, folder, one):
    both = launch(2, "run=two", "stop_at=5")
    assert both.returncode == 0, both.stderr
    assert json.loads((folder / "multirun/two/run.json").read_text())["state"] == "paused"
    both = launch(2, "run=two")
    assert both.returncode == 0, both.stderr
    single, two = metrics(one), metrics(folder / "multirun" / "two")
    assert [line["step"] for line in two] == [line["step"] for line in single] == list(range(11))  # written once
    for alone, shared in zip(single, two, strict=True):
        for key in ("train/loss", "train/loss_unweighted", "train/grad_norm", "train/lr", "val/loss", "val/ema/loss"):
            assert (key in shared) == (key in alone)
            if key in alone:
                assert shared[key] == pytest.approx(alone[key], rel=1e-4), (key, alone["step"])
    assert two[-1]["val/loss"] == pytest.approx(single[-1]["val/loss"], rel=1e-5)
    assert single[0]["val/loss"] == two[0]["val/loss"]  # the same weights still: the same bits
    alone, shared = (weights(folder / "multirun" / name) for name in ("one", "two"))
    assert all(torch.allclose(alone[key], shared[key], atol=1e-5) for key in alone)
    assert json.loads((folder / "multirun/two/run.json").read_text())["num_processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_another_number_of_processes_continues_the_run(launch, folder, one, first, then):
    """With less memory for each, too."""
    name = f"{first}-{then}"
    assert launch(first, f"run={name}", "stop_at=5").returncode == 0
    rest = launch(then, f"run={name}", "micro_batch_size=2", "gradient_checkpointing=true")
    assert rest.returncode == 0, rest.stderr
    whole, found = metrics(one), metrics(folder / "multirun" / name)
    assert [line["step"] for line in found] == list(range(11))
    assert found[-1]["val/loss"] == pytest.approx(whole[-1]["val/loss"], rel=1e-5)
    assert json.loads((folder / "multirun" / name / "run.json").read_text())["num_processes"] == then


@pytest.mark.slow
def test_they_agree_on_one_folder_without_a_name(launch, folder):
    both = launch(2, "steps=1", "validate_every=0")
    assert both.returncode == 0, both.stderr
    assert len(list((folder / "multirun").glob("*-minsnr/*/run.json"))) == 1
    assert len(list((folder / "multirun").glob("*-minsnr/*"))) == 1


@pytest.mark.slow
def test_a_sweep_inside_of_them_is_refused_once(launch):
    both = launch(2, "-m", "seed=0,1")
    assert both.returncode != 0
    assert "would run the whole sweep in each of the 2 processes" in both.stderr


@pytest.mark.slow
def test_a_sweep_launches_them(launch, folder):
    command = f"'{ACCELERATE} launch --multi_gpu --num_processes 2 -m t2i.train'"
    sweep = launch(1, "-m", "sweep=pairs", "seed=0,1", "steps=2", f"hydra.launcher.command={command}")
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr
    found = [json.loads(file.read_text()) for file in (folder / "multirun/pairs").glob("*/run.json")]
    assert [(info["state"], info["num_processes"]) for info in found] == [("finished", 2)] * 2
