"""Caches and run folders have the permissions that the user's umask asks for, and nothing is left in /tmp."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import packing
from helpers.image_folders import as_jsonl

PROGRAM = """
import os, sys, torch
os.umask(int(sys.argv[1], 8))
from helpers import packing
from helpers.image_folders import from_folder
from t2i.data.latent_cache import encode
from t2i.models.stable_diffusion import load
model = load(sys.argv[2])
data = from_folder("images", resolution=64)
encode(data.train, model, "cache")
packing.from_files("shards", "cache")
"""


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o027, 0o002])
def test_caches_respect_the_umask(umask, small_pipeline, tmp_path):
    (tmp_path / "images").mkdir()
    as_jsonl(tmp_path / "images")
    packing.write_shards(tmp_path / "shards", "tar", 3, 3)
    (tmp_path / "tmp").mkdir()
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    places = {"TMPDIR": str(tmp_path / "tmp"), "HF_DATASETS_CACHE": str(tmp_path / "scans"), "PYTHONPATH": paths}
    command = [sys.executable, "-c", PROGRAM, oct(umask)[2:], str(small_pipeline)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | places, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_modes([tmp_path / "cache", tmp_path / "scans"], umask)
    assert list((tmp_path / "tmp").iterdir()) == []


def assert_modes(folders, umask):
    written = [file for folder in folders for file in folder.rglob("*") if not file.is_symlink()]
    assert len(written) > 15
    modes = {str(file): stat.S_IMODE(file.stat().st_mode) for file in written}
    expected = {str(file): (0o777 if file.is_dir() else 0o666) & ~umask for file in written}
    assert modes == expected


@pytest.mark.slow
@pytest.mark.parametrize(("umask", "adapter"), [(0o022, "none"), (0o077, "lora")])
def test_a_run_folder_respects_the_umask(umask, adapter, small, tmp_path):
    (tmp_path / "tmp").mkdir()
    settings = ["run=masked", "steps=2", "save_every=1", f"adapter={adapter}", "cache_dir=cache"]
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "t2i.train", *small, *settings]
    options = {"cwd": tmp_path, "env": environment, "umask": umask}
    done = subprocess.run(command, **options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "multirun" / "masked" / "model").is_dir()
    assert_modes([tmp_path / "multirun", tmp_path / "cache"], umask)
    assert list((tmp_path / "tmp").iterdir()) == []
