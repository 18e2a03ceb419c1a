"""Run folders, sweeps and caches that were written before the code moved into packages (at 832b2fd) still work."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from t2i.config.model_size import BUNDLED
from t2i.sampling.images import sample
from t2i.sampling.pipelines import load_pipeline

EARLIER = Path(__file__).parent / "fixtures" / "run_of_832b2fd"
EXPECTED = json.loads((EARLIER / "expected.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of what was left at 832b2fd; of the base there is only the UNet, the rest is that of `tiny`."""
    folder = tmp_path_factory.mktemp("earlier") / "runs"
    shutil.copytree(EARLIER, folder)
    without_unet = shutil.ignore_patterns("unet")
    shutil.copytree(BUNDLED["tiny"], folder / "base", ignore=without_unet, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def t2i(folder):
    def t2i(command, *arguments):
        program = [sys.executable, "-m", f"t2i.{command}", *arguments]
        return subprocess.run(program, cwd=folder, capture_output=True, text=True)

    return t2i


def cached(folder):
    return {file.name: file.read_bytes() for file in (folder / "cache" / "encodings").glob("*.arrow")}


@pytest.mark.slow
def test_a_paused_run_goes_on_to_the_same_end_and_encodes_nothing(folder, t2i):
    before = cached(folder)
    run = t2i("train", "run=full", *EXPECTED["common"])
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [json.loads(line) for line in (folder / "multirun/full/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(9))
    assert lines[-1]["val/loss"] == pytest.approx(EXPECTED["full"], rel=1e-6)  # another CPU may round otherwise
    assert cached(folder) == before


@pytest.mark.slow
def test_a_sweep_goes_on_and_is_sampled_from_and_compared(folder, t2i):
    before = cached(folder)
    finished = (folder / "multirun/gamma/loss.snr_gamma-1/run.json").read_bytes()
    sweep = ["-m", "sweep=gamma", "loss.snr_gamma=1,5", "adapter=lora", "adapter.rank=1", *EXPECTED["common"]]
    again = t2i("train", *sweep)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (folder / "multirun/gamma/loss.snr_gamma-1/run.json").read_bytes() == finished  # not touched
    final = json.loads((folder / "multirun/gamma/loss.snr_gamma-5/run.json").read_text())["final"]
    assert final["val/loss"] == pytest.approx(EXPECTED["loss.snr_gamma-5"], rel=1e-6)
    assert cached(folder) == before

    sampled = t2i("sample", "multirun/gamma/loss.snr_gamma-1", "picture 1", "--steps", "2")
    assert sampled.returncode == 0, sampled.stderr
    assert (folder / "samples.png").is_file()
    compared = t2i("compare", "multirun/gamma")
    assert compared.returncode == 0, compared.stderr
    assert "snr_gamma=5" in compared.stdout
    assert (folder / "multirun/gamma/comparison/comparison.html").is_file()


@pytest.mark.slow
def test_its_weights_are_averaged_and_measured_on_its_battery(folder, t2i):
    shutil.copytree(EARLIER / "multirun" / "full", folder / "multirun" / "twice")  # at step 4
    run = "multirun/twice"
    averaged = t2i("average", run, f"{run}/checkpoints/step-000004", "--weights", "raw", "--export", "soup")
    assert averaged.returncode == 0, averaged.stdout + averaged.stderr
    assert (folder / "soup" / "unet").is_dir()
    assert "uniform soup of 2" in averaged.stdout


def test_the_checkpoint_of_an_unfinished_run_is_sampled_from(folder, tmp_path, monkeypatch):
    shutil.copytree(EARLIER / "multirun" / "full", tmp_path / "multirun" / "full")
    shutil.copytree(folder / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)  # the base is relative to where the run was started
    pipeline = load_pipeline(tmp_path / "multirun" / "full")
    assert sample(pipeline, ["picture 1"], seed=0, steps=1, guidance_scale=1.0)[0].size == (64, 64)
