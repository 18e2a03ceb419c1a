"""The benchmarks compare the same training, and their figures agree with each other."""

import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from helpers.runs import compose
from transformers import CLIPTextModel

from t2i.config.checks import check
from t2i.distributed import processes
from t2i.experiment.plan import make_plan
from t2i.experiment.run import run
from t2i.models.stable_diffusion import load
from t2i.runs.folder import Run

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
LOSSES = {"mse": (), "minsnr": ("loss.snr_gamma=5",)}


@pytest.fixture(scope="module", autouse=True)
def on_path() -> Iterator[None]:
    """The benchmarks' files import each other, as scripts of one folder do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    import pipelines

    return pipelines.images(tmp_path_factory.mktemp("data") / "images", 64, number=16)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_gradients_of_the_reference_are_those_of_t2i(small_pipeline, loss, prediction_type):
    import reference

    cfg = compose(f"model.path={small_pipeline}", f"scheduler={prediction_type}", f"loss={loss}", *LOSSES[loss])
    plan, model = make_plan(cfg), load(small_pipeline)
    scheduler = DDPMScheduler.from_config({**plan.scheduler.config})
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(8, 4, 16, 16, generator=generator) for _ in range(2))
    t = torch.randint(0, 1000, (8,), generator=generator)
    text = model.embed(["cat face", "red apple"] * 4)

    def gradients(value: torch.Tensor) -> list[torch.Tensor]:
        return torch.autograd.grad(value, list(model.denoiser.parameters()))

    noised = plan.diffusion.add_noise(latents, noise, t)
    ours = gradients(plan.loss(model.denoise(noised.x, noised.time, text), noised).mean())
    gamma = cfg.loss.get("snr_gamma")
    hidden = text["encoder_hidden_states"]
    theirs = gradients(reference.diffusion_loss(model.denoiser, scheduler, latents, noise, t, hidden, gamma))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_frozen_parts_of_the_reference_are_those_of_t2i(small_pipeline, images):
    import reference

    settings = reference.Settings(str(small_pipeline), images / "train", 64, 2, 1e-4, "no", False)
    model, accelerator = load(small_pipeline), processes.start("no")
    pixels, tokens = reference.Images(settings, model.tokenizers["tokenizer"])[0]
    caption = (images / "train" / "000.txt").read_text()
    vae = reference.frozen(AutoencoderKL, settings, accelerator, "vae")
    text_encoder = reference.frozen(CLIPTextModel, settings, accelerator, "text_encoder")
    mean, _ = model.encode(pixels[None])
    scaled = vae.encode(pixels[None]).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(scaled, mean, rtol=1e-4, atol=1e-4)  # t2i's lies channels_last
    torch.testing.assert_close(text_encoder(tokens[None])[0], model.embed([caption])["encoder_hidden_states"])


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (50, 80), (33, 200)])
def test_images_of_the_reference_are_squares_of_the_resolution(small_pipeline, tmp_path, size):
    import reference
    from PIL import Image

    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("red")
    tokenizer = load(small_pipeline).tokenizers["tokenizer"]
    for random in (False, True):
        settings = reference.Settings(str(small_pipeline), tmp_path, 64, 1, 1e-4, "no", False, random, flip=random)
        pixels, _ = reference.Images(settings, tokenizer)[0]
        assert torch.equal(pixels, torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 64, 64))


@pytest.mark.slow
def test_both_learn_with_the_same_settings(small_pipeline, images, tmp_path):
    import reference

    processes.forget_earlier_job()  # the reference makes an Accelerator of its own
    settings = reference.Settings(str(small_pipeline), images / "train", 64, 8, 2e-3, "no", True)
    theirs = list(islice(reference.train(settings), 24))
    cfg = compose(
        "experiment=smoke", f"model.path={small_pipeline}", "dataset=folder", f"dataset.path={images}",
        "dataset.resolution=64", f"cache_dir={tmp_path}/cache", "gradient_checkpointing=true", "loss=mse",
        "ema=none", "caption_dropout=0", "lr_scheduler=constant", "optimizer.lr=2e-3", "precision=fp32", "steps=24",
        "validate_every=0", "sample_every=0", "save_every=0", "validation.items=2",
    )  # fmt: skip
    run(cfg, make_plan(cfg), tmp_path / "run", [])
    ours = [line["train/loss"] for line in Run(tmp_path / "run", cfg).metrics() if line["step"] > 0]
    for losses in (ours, theirs):
        assert len(losses) == 24
        assert statistics.mean(losses[-8:]) < 0.85 * losses[0]
    assert statistics.mean(ours[-8:]) == pytest.approx(statistics.mean(theirs[-8:]), rel=0.15)


def test_a_turn_is_steps_that_are_not_timed_and_steps_that_are():
    from arms import Done, Turns

    answers, steps = io.StringIO(), 0
    turns = Turns(io.StringIO("1 2\n0 3\n"), answers)
    with pytest.raises(Done):  # noqa: PT012
        turns.begin(precision="fp32")
        while True:
            steps += 1
            assert not turns.step_done()
    ready, *timed = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert steps == 6
    assert ready["precision"] == "fp32"
    assert len(timed) == 2
    assert all(each["seconds"] > 0 and each["peak_gb"] > 0 for each in timed)


def test_ratios_are_of_turns_of_the_same_round():
    from speed import Arm, Outcome, comparisons

    usual = Outcome("usual", Arm("reference", ""), seconds={0: 2.0, 1: 6.0, 2: 3.0})
    ours = Outcome("ours", Arm("t2i", "", against=("usual", "absent")), seconds={0: 1.0, 1: 2.0, 2: 3.0})
    stopped = Outcome("stopped", Arm("t2i", "", against=("usual",)), seconds={1: 3.0})
    of_ours, of_stopped = comparisons([usual, ours, stopped])
    assert of_ours["speed"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert of_ours["time"] == {"median": 0.5, "min": pytest.approx(1 / 3), "max": 1.0}
    assert (of_stopped["rounds"], of_stopped["speed"]["median"]) == (1, 2.0)


def test_overlapping_kernels_keep_a_gpu_busy_once():
    from arms import busy_share

    def event(start, end, device=torch.autograd.DeviceType.CUDA):
        return SimpleNamespace(device_type=device, time_range=SimpleNamespace(start=start * 1e6, end=end * 1e6))

    on_host = event(0, 10, torch.autograd.DeviceType.CPU)
    assert busy_share([event(1, 3), event(2, 4), event(2, 3), event(6, 7), on_host], 10.0) == pytest.approx(0.4)
    assert busy_share([on_host], 10.0) == 0


def test_the_table_of_a_gpu_says_what_was_measured_and_what_was_not():
    from gpu_table import table

    machine = {"device": "NVIDIA A", "driver": "550.1", "cuda": "13.0", "cpu": "EPYC", "cores": 8, "torch": "2.13.0"}
    arms = [
        {"name": "bare", "problem": "", "median_seconds": 0.2, "peak_gb": 11.25, "busy": 0.987},
        {"name": "t2i", "problem": "", "median_seconds": 0.21, "peak_gb": 12.0, "busy": None},
        {"name": "reference", "problem": "no time was left for it", "busy": None},
    ]
    ratio = {"arm": "t2i", "against": "bare", "speed": {"median": 0.95, "min": 0.94, "max": 0.96}}
    tests = {
        "passed": 40,
        "failed": {"a::b": "AssertionError"},
        "skipped": {"c": "one GPU"},
        "seconds": 99.6,
        "problem": "",
    }
    report = {"date": "2026-12-01", "command": "make", "minutes": 7.26, "tests": tests}
    report["sets"] = [{"set": "sd15", "resolution": 512, "machine": machine, "arms": arms, "comparisons": [ratio]}]
    assert table(report).splitlines() == [
        "NVIDIA A, driver 550.1, CUDA 13.0; EPYC, 8 cores; PyTorch 2.13.0. 2026-12-01, `make`, 7.3 minutes.",
        "",
        "40 tests passed, 1 failed, 1 skipped, in 100 s. `a::b` failed: AssertionError.",
        "",
        "| Set | Arm | s per step | against | peak memory | GPU busy |",
        "|---|---|---|---|---|---|",
        "| `sd15`, 512 pixels | bare | 0.2000 |  | 11.2 GB | 99 % |",
        "| `sd15`, 512 pixels | t2i | 0.2100 | bare: speed 0.95 × (0.94 to 0.96) | 12.0 GB |  |",
        "| `sd15`, 512 pixels | reference | not measured: no time was left for it | | | |",
    ]


def test_the_tests_of_a_gpu_are_counted(tmp_path):
    from gpu_tests import counted

    (tmp_path / "t.xml").write_text(
        '<testsuites><testsuite><testcase classname="tests.gpu.x" name="a"/><testcase classname="tests.gpu.x" name="b">'
        '<failure message="assert 1 == 2&#10;more"/></testcase><testcase classname="tests.gpu.x" name="c">'
        '<skipped message="one GPU"/></testcase></testsuite></testsuites>'
    )
    found = counted(tmp_path / "t.xml")
    assert found == {"passed": 1, "failed": {"x::b": "assert 1 == 2"}, "skipped": {"x::c": "one GPU"}}
    assert counted(tmp_path / "none.xml") == {"passed": 0, "failed": {}, "skipped": {}}


@pytest.mark.slow
def test_every_arm_of_a_gpu_has_settings_that_are_accepted():
    from gpu import EVERY, SETS

    for name, chosen in SETS.items():
        for arm in chosen["arms"].values():
            overrides = [*EVERY.split(), *chosen["overrides"].split(), *arm.overrides.split(), "dataset.path=images"]
            cfg = compose(*overrides)
            check(cfg, num_processes=1)
            assert cfg.model._target_, name


def test_random_weights_have_the_scale_of_real_ones(layout):
    import random_pipelines

    network = random_pipelines._network("diffusers", "UNet2DConditionModel", layout("sd15") / "unet")
    state = network.state_dict()
    assert state["conv_in.weight"].float().std().item() == pytest.approx(random_pipelines.SCALE, rel=0.1)
    assert (state["conv_norm_out.weight"] == 1).all()
    x, text = torch.randn(1, 4, 16, 16), torch.randn(1, 8, network.config.cross_attention_dim)
    assert network.float()(x, torch.tensor([5]), text).sample.isfinite().all()


def speed(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)}
    command = [sys.executable, str(BENCHMARKS / "speed.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.long
def test_speed_measures_every_arm(tmp_path):
    out = tmp_path / "speed.json"
    done = speed(
        "--rounds", "2", "--steps", "1", "--device", "cpu", "--out", str(out), "batch_size=2", "micro_batch_size=2"
    )
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(out.read_text())
    arms = {arm["name"]: arm for arm in report["arms"]}
    timed = {"reference", "reference-fp32", "t2i", "t2i-all-on", "bare", "channels-first", "channels-last"}
    assert set(arms) == timed
    for name, arm in arms.items():
        assert name in done.stdout
        assert not arm["problem"]
        assert arm["median_seconds"] == statistics.median(arm["seconds"])
        assert 0.1 < arm["peak_gb"] < 5
    for each in report["comparisons"]:
        rounds = zip(arms[each["against"]]["seconds"], arms[each["arm"]]["seconds"], strict=True)
        ratios = [baseline / own for baseline, own in rounds]
        assert each["speed"] == {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


@pytest.mark.slow
@pytest.mark.long
def test_an_arm_that_fails_is_named_and_the_others_go_on(tmp_path):
    out = tmp_path / "speed.json"
    done = speed(
        "--rounds", "1", "--steps", "1", "--device", "cpu", "--out", str(out), "--arms", "reference,t2i",
        "optimizer._target_=torch.optim.NoSuch",
    )  # fmt: skip
    assert done.returncode == 1
    (report,) = json.loads(out.read_text())
    reference, ours = report["arms"]
    assert reference["seconds"]
    assert "NoSuch" in ours["problem"]
    assert "t2i fails" in done.stdout


@pytest.mark.slow
@pytest.mark.long
def test_start_sees_that_the_second_run_encodes_nothing(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)}
    command = [sys.executable, str(BENCHMARKS / "start.py"), "--rounds", "1", "threads=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the second encodes nothing") == 2
