"""Between two lines of the log, a training loop on a GPU never makes the host wait for it; on a pretended one."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers import families, layouts, pretended_cuda
from helpers.packing import write_shards
from PIL import Image

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="the pretended GPU is built for Linux"),
]
SETTINGS = (
    "steps=3",
    "log_every=3",
    "batch_size=4",
    "micro_batch_size=4",
    "sample_every=0",
    "save_every=0",
    "validate_every=0",
)


Job = tuple[Path, list[str]]  # the folder of a run, and its overrides


class Watch:
    """Runs on the pretended GPU, in processes of their own."""

    def __init__(self, guard: Path, settings: list[str]):
        self.guard, self.settings = guard, settings

    def python(self, *arguments: str, given: str = "") -> str:
        """What Python prints."""
        tests = Path(__file__).resolve().parent.parent
        environment = os.environ | {pretended_cuda.GUARD: str(self.guard), "PYTHONPATH": f"{tests.parent}:{tests}"}
        done = subprocess.run(
            [sys.executable, *arguments], input=given, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def complete(self, overrides: list[str]) -> list[str]:
        """With the settings of all runs, but not those of their data set where there is another one."""
        other = any(text.startswith("dataset=") for text in overrides)
        return [*(text for text in self.settings if not (other and text.startswith("dataset."))), *overrides]

    def waits(self, *jobs: Job) -> list[Counter]:
        """What the host waited for in each run, by what the run was at: step, log, validate, save, ..."""
        given = json.dumps([(str(folder), self.complete(overrides)) for folder, overrides in jobs])
        lines = self.python("-m", "helpers.pretended_cuda.run", given=given).splitlines()
        results = [json.loads(line) for line in lines if line.startswith("{")]
        for (_, overrides), result in zip(jobs, results, strict=True):
            assert result["failure"] is None, f"{overrides}: {result['failure']}"
        return [Counter((during, what, *where) for during, what, where in result["waits"]) for result in results]


@pytest.fixture(scope="module")
def watch(small, tmp_path_factory):
    guard = tmp_path_factory.mktemp("guard") / "guard.so"
    pretended_cuda.compile_guard(guard)
    return Watch(guard, [*small, *SETTINGS])


def during(waits: Counter, phase: str) -> dict[tuple[str, ...], int]:
    return {key[1:]: number for key, number in waits.items() if key[0] == phase}


KNOWN = """
from pathlib import Path
from helpers.pretended_cuda.device import pretended
import torch
from t2i.hardware.uploads import upload

with pretended(Path("/")) as watch:
    gpu = torch.device("cuda")
    x = upload(torch.ones(3), gpu)  # from page-locked memory
    mask, y = x > 0, x.clone().requires_grad_()
    y.sum().backward()
    x.add_(1), torch.where(mask, x, 0), x[torch.ones(2, dtype=torch.long, device=gpu)], torch.zeros(2, device=gpu)
    print(len(watch.waits))
    def waits(do):
        before = len(watch.waits)
        try:
            do()
        except RuntimeError as error:
            return "two devices" if "device" in str(error) or "on the CPU" in str(error) else error
        return len(watch.waits) - before
    z = x.clone().requires_grad_()
    z.register_hook(lambda gradient: None if float(gradient.sum()) else None)
    print([waits(do) for do in (
        lambda: float(x.sum()), lambda: bool(mask.all()), lambda: x.cpu(), lambda: x[mask], lambda: mask.nonzero(),
        lambda: torch.ones(3).to(gpu), lambda: torch.ones(3).to(gpu, non_blocking=True),
        lambda: torch.tensor([1.0], device=gpu), lambda: torch.ones(3).copy_(x), lambda: x.copy_(torch.ones(3)),
        lambda: x[torch.tensor([0])], lambda: z.sum().backward(),
    )])
    print([waits(do) for do in (lambda: x + torch.ones(3), lambda: torch.ones(3)[x.long()])])
"""


@pytest.mark.slow
def test_what_makes_the_host_wait_is_noticed(watch, tmp_path):
    """Also in a backward pass; and operations on two devices raise."""
    done = watch.python("-c", KNOWN)
    assert done.splitlines() == ["0", str([1] * 12), str(["two devices"] * 2)]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")

    def pipeline(family: str) -> list[str]:
        save = layouts.save if family in ("sd15", "sd21", "sdxl") else families.save
        path = folder / family
        return [f"model={family}", f"model.path={path if path.exists() else save(family, path)}"]

    return pipeline


TEXT = ["adapter=lora", "adapter.text_encoder=true"]


@pytest.mark.slow
def test_no_step_waits(watch, pipelines, tmp_path):
    """However numbers are held, and for families that are conditioned in different ways."""
    jobs = [
        ["precision=fp32", "micro_batch_size=2"],
        ["precision=fp16", "adapter=lora", "input_perturbation=0.1"],
        ["precision=bf16_sr"],
        [*pipelines("sdxl"), *TEXT, "precision=bf16"],
        [*pipelines("sd35"), "adapter=lora", "adapter.rank=4", "error=huber"],
    ]
    for overrides, waits in zip(jobs, watch.waits(*enumerated(tmp_path, jobs)), strict=True):
        assert during(waits, "step") == {}, overrides


@pytest.mark.slow
def test_captions_of_unequal_length_make_qwen_image_wait_once(watch, pipelines, tmp_path):
    """In its own code: Diffusers sends a length there, which nothing reads."""
    (waits,) = watch.waits((tmp_path / "run", [*pipelines("qwen_image"), "adapter=lora", "adapter.rank=4"]))
    in_steps = during(waits, "step")
    assert sum(in_steps.values()) == 2  # steps after the first
    assert {where.partition(":")[0] for _, where, *_ in in_steps} == {"models/qwen_image.py"}


@pytest.mark.slow
def test_a_validation_waits_once_for_each_set_of_weights(watch, tmp_path):
    """And nothing of a run, from validation to a checkpoint that is resumed from, mixes devices."""
    settings = ["validate_every=2", "save_every=1", "sample_every=2", "samples.steps=1"]
    paused, resumed = watch.waits((tmp_path / "run", [*settings, "stop_at=1"]), (tmp_path / "run", settings))
    assert during(paused, "step") == during(resumed, "step") == {}
    assert during(paused, "save") == during(resumed, "save") == {}  # a checkpoint is copied to page-locked memory
    assert sum(during(paused, "validate").values()) == 1  # at step 0 the average is that of equal weights
    assert sum(during(resumed, "validate").values()) == 4  # errors of raw and of averaged weights, at two steps


def images(folder: Path) -> list[str]:
    """A data set of ten images with a new word as caption."""
    folder.mkdir()
    for i in range(10):
        Image.new("RGB", (64, 64), (20 * i, 0, 0)).save(folder / f"{i}.png")
    return ["dataset=folder", f"dataset.path={folder}", "dataset.caption='photo of <sks>'"]


def enumerated(folder: Path, jobs: list[list[str]]) -> list[Job]:
    return [(folder / str(number), overrides) for number, overrides in enumerate(jobs)]


ADAPTERS = ("lora", "dora", "rslora", "pissa", "olora", "lokr", "loha", "oft", "boft")


@pytest.mark.slow
@pytest.mark.long
def test_no_step_waits_in_any_configuration(watch, pipelines, tmp_path):
    """Every precision, adapter and family, AdamW in each of its forms, weightings, averages, streams."""
    shards = write_shards(tmp_path, "tar", 2, 20)
    jobs = [
        *([f"precision={precision}"] for precision in ("fp32", "bf16", "fp16")),
        *([f"adapter={adapter}"] for adapter in ADAPTERS),
        *([*pipelines(family), *text] for family in ("sd15", "sd21", "sdxl") for text in ([], TEXT)),
        *(pipelines(family) for family in families.PIPELINES if family != "qwen_image"),
        *(
            [*pipelines(family), "adapter=lora"]
            for family in families.PIPELINES
            if family not in ("pixart", "qwen_image")
        ),
        *([f"loss={loss}"] for loss in ("mse", "sigma_sqrt", "edm", "p2")),
        *([f"error={error}"] for error in ("huber", "smooth_l1")),
        *([f"ema={ema}"] for ema in ("none", "post_hoc")),
        ["caption_dropout=0.5", "noise_offset=0.1", "input_perturbation=0.1", "timesteps=stratified"],
        ["dataset=webdataset", f"dataset.path={shards}", "dataset.resolution=64"],
    ]
    for overrides, waits in zip(jobs, watch.waits(*enumerated(tmp_path, jobs)), strict=True):
        assert during(waits, "step") == {}, overrides


@pytest.mark.slow
@pytest.mark.long
def test_no_step_of_textual_inversion_waits(watch, tmp_path):
    new_word = ["adapter=textual_inversion", "adapter.new_tokens=['<sks>:dog']"]
    (waits,) = watch.waits((tmp_path / "run", [*images(tmp_path / "images"), *new_word]))
    assert during(waits, "step") == {}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["lion", "schedulefree"])
def test_an_optimizer_that_can_not_skip_a_step_waits_once(watch, tmp_path, optimizer):
    (waits,) = watch.waits((tmp_path / "run", [f"optimizer={optimizer}"]))
    assert sum(during(waits, "step").values()) == 2  # steps after the first
