"""Two processes under `accelerate launch`, with gloo on the CPU: the same training as in one."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from helpers.launch import ACCELERATE, train
from helpers.runs import untimed
from PIL import Image
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.distributed import processes
from t2i.evaluation.image_battery import TOGETHER


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def launch(small, folder):
    return lambda number, *overrides: train(number, ["micro_batch_size=4", *small, *overrides], folder)


@pytest.fixture(scope="module")
def one(launch, folder):
    """The folder of a run in one process, whose batches are not divided into micro-batches."""
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
    for expected, line in zip(single, two, strict=True):
        for key in ("train/loss", "train/loss_unweighted", "train/grad_norm", "train/lr", "val/loss", "val/ema/loss"):
            assert (key in line) == (key in expected)
            if key in expected:
                assert line[key] == pytest.approx(expected[key], rel=1e-4), (key, expected["step"])
    assert two[-1]["val/loss"] == pytest.approx(single[-1]["val/loss"], rel=1e-5)
    assert single[0]["val/loss"] == two[0]["val/loss"]  # before the first step: the same bits
    expected, trained = (weights(folder / "multirun" / name) for name in ("one", "two"))
    assert all(torch.allclose(expected[key], trained[key], atol=1e-5) for key in expected)
    assert json.loads((folder / "multirun/two/run.json").read_text())["num_processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.long)])
def test_another_number_of_processes_continues_the_run(launch, folder, one, first, then):
    """Also with settings that save memory."""
    name = f"{first}-{then}"
    assert launch(first, f"run={name}", "stop_at=5").returncode == 0
    rest = launch(then, f"run={name}", "micro_batch_size=2", "gradient_checkpointing=true")
    assert rest.returncode == 0, rest.stderr
    lines = metrics(folder / "multirun" / name)
    assert [line["step"] for line in lines] == list(range(11))
    assert lines[-1]["val/loss"] == pytest.approx(metrics(one)[-1]["val/loss"], rel=1e-5)
    assert json.loads((folder / "multirun" / name / "run.json").read_text())["num_processes"] == then


@pytest.mark.slow
def test_they_divide_the_images_by_which_a_model_is_judged(launch, folder):
    """In whole batches, of which there are three for two processes; up to the rounding of one step's weights."""
    judged = ["steps=1", "evaluate_every=1", "evaluation.steps=2", "metric=[nearest_reference]", "micro_batch_size=4"]
    judged += ["evaluation.seeds=[0,1,2,3,4,5,6]", "sample_every=0", "validate_every=0"]
    runs = [folder / "multirun" / name for name in ("judged-1", "judged-2")]
    for number, run in enumerate(runs, start=1):
        done = launch(number, f"run={run.name}", *judged)
        assert done.returncode == 0, done.stderr
    alone, together = (sorted(run.glob("images/*/*/*.png")) for run in runs)
    assert [file.name for file in alone] == [file.name for file in together]
    assert len(alone) > 2 * TOGETHER
    for one, other in zip(alone, together, strict=True):
        assert np.abs(np.asarray(Image.open(one)).astype(int) - np.asarray(Image.open(other))).max() <= 2
    scores = [metrics(run)[-1]["images/nearest_reference"] for run in runs]
    assert scores[0] == pytest.approx(scores[1], abs=0.1)


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
@pytest.mark.long
def test_a_sweep_launches_them(launch, folder):
    command = f"'{ACCELERATE} launch --multi_gpu --num_processes 2 -m t2i.train'"
    sweep = launch(1, "-m", "sweep=pairs", "seed=0,1", "steps=2", f"hydra.launcher.command={command}")
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr
    runs = [json.loads(file.read_text()) for file in (folder / "multirun/pairs").glob("*/run.json")]
    assert [(info["state"], info["num_processes"]) for info in runs] == [("finished", 2)] * 2


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_each_process_is_assigned_equally_many_pieces_of_the_work(number):
    ranks = [SimpleNamespace(process_index=index, num_processes=number) for index in range(number)]
    pieces = [processes.assigned("abcd", rank) for rank in ranks]
    assert len({len(own) for own in pieces}) == 1
    assert set().union(*pieces) == set("abcd")
    assert all(processes.assigned("", rank) == [] for rank in ranks)


def test_deepspeed_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"DeepSpeed is not supported.*--fsdp_version 2.*--multi_gpu"):
        processes.start("no")


def test_processes_that_would_each_train_by_themselves_are_refused(monkeypatch):
    alone = SimpleNamespace(num_processes=1, device="mps", distributed_type=DistributedType.NO)
    monkeypatch.setattr(processes, "Accelerator", lambda **settings: alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes were started .* can't work together on mps; start one"):
        processes.start("no")


def test_fsdp_1_is_refused_with_the_remedy():
    plugin = SimpleNamespace(fsdp_version=1)
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin))
    with pytest.raises(ConfigError, match=r"FSDP 1 is not supported.*fsdp_version: 2.*--multi_gpu"):
        processes.refuse_fsdp_1(accelerator)
    plugin.fsdp_version = 2
    processes.refuse_fsdp_1(accelerator)


def test_every_process_reads_complete_text_encoders(monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    processes.start("no")
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_a_later_job_of_the_process_may_have_another_precision():
    assert [processes.start(precision).mixed_precision for precision in ("bf16", "no")] == ["bf16", "no"]


def test_autocast_keeps_no_copies_of_the_weights():
    with processes.start("bf16").autocast():
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_cache_enabled()


@pytest.mark.slow
def test_a_fork_in_two_processes_is_the_trunk_that_goes_on(launch, folder):
    for settings in (("run=trunk",), ("run=fork", "from=trunk@5")):
        both = launch(2, *settings, "sample_every=0")
        assert both.returncode == 0, both.stderr
    trunk, fork = folder / "multirun" / "trunk", folder / "multirun" / "fork"
    first, second = weights(trunk), weights(fork)
    assert all(torch.equal(first[name], second[name]) for name in first)
    timeless = [untimed(metrics(run)) for run in (trunk, fork)]
    assert timeless[0] == timeless[1]
