"""A power cut at any moment loses nothing that a checkpoint stands for: the run continues to the same bits.

The run works on a file system of its own, in an image file. Copies of the image hold what had reached the disk at a
moment; everything that was only in memory is gone, as after a power cut.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.runs import compose, untimed
from safetensors.torch import load_file

from t2i.experiment.plan import make_plan
from t2i.experiment.run import run as run_experiment
from t2i.runs.records import read_metrics

CUTS = 50
SETTINGS = ["steps=40", "save_every=5", "validate_every=10", "sample_every=20", "keep_checkpoints=2", "threads=1"]


@contextmanager
def mounted(image: Path, folder: Path):
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop,commit=1", image, folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def disk(tmp_path):
    """The image of an empty ext4 file system."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(96 * 2**20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", image], check=True, capture_output=True)
        with mounted(image, tmp_path / "probe"):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine can't mount an ext4 image ({error})")
    return image


def results(folder: Path):
    metrics = untimed(read_metrics(folder).values())
    weights = load_file(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    return metrics, {name: weight.clone() for name, weight in weights.items()}  # without a view of the file


@pytest.mark.slow
def test_a_run_continues_to_the_same_bits_after_a_power_cut_at_any_moment(disk, small, train, tmp_path):
    undisturbed = train(tmp_path / "undisturbed", *SETTINGS)
    cuts, moments = tmp_path / "cuts", random.Random(0)
    cuts.mkdir()
    with mounted(disk, tmp_path / "mounted") as folder:
        program = [sys.executable, "-m", "t2i.train", *small, *SETTINGS, f"hydra.run.dir={folder}/run"]
        process = subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if (folder / "run" / "metrics.jsonl").is_file():  # it has begun
                os.kill(process.pid, signal.SIGSTOP)
                shutil.copyfile(disk, cuts / f"{len(list(cuts.iterdir())):03}.img")
                os.kill(process.pid, signal.SIGCONT)
            time.sleep(moments.uniform(0.02, 0.2))
        assert process.returncode == 0
    chosen = sorted(cuts.iterdir())[:CUTS]
    assert len(chosen) >= 20
    for image in chosen:
        with mounted(image, tmp_path / "mounted") as folder:
            cfg = compose(*small, *SETTINGS)
            run_experiment(cfg, make_plan(cfg), folder / "run", [])
            (metrics, weights), (expected_metrics, expected) = results(folder / "run"), results(undisturbed.folder)
            assert metrics == expected_metrics
            assert all((weights[name] == expected[name]).all() for name in expected)
