"""Sweeps started as a user starts them."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers.launch import OPTIONS, WITH_HELPERS


@pytest.fixture
def command(small, tmp_path):
    """Start `python -m t2i.train -m` on small runs in a folder that is not the checkout."""
    shutil.copytree(OPTIONS, tmp_path / "options")

    def start(*arguments: str) -> subprocess.Popen:
        program = [
            sys.executable,
            "-m",
            "t2i.train",
            "-m",
            *arguments,
            *small,
            "threads=1",
            "sample_every=0",
            "allowed_targets=[saboteur,commander]",
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(program, cwd=tmp_path, env=os.environ | {"PYTHONPATH": WITH_HELPERS}, **pipes)

    return start
