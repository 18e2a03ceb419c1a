"""Sweeps started as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

OPTION = """# A loss that ends some jobs.
_target_: saboteur.Saboteur
folder: ???
seed: ${seed}
snr_gamma: 5.0
normalize: false
error: ${error}
"""


COMMANDER = """# A loss that executes commands.
_target_: commander.Commander
folder: ???
seed: ${seed}
snr_gamma: 5.0
normalize: false
error: ${error}
"""


@pytest.fixture
def command(small, tmp_path):
    """Start `python -m t2i.train -m` on small runs in a folder that is not the checkout."""
    (tmp_path / "options" / "loss").mkdir(parents=True)
    (tmp_path / "options" / "loss" / "saboteur.yaml").write_text(OPTION)
    (tmp_path / "options" / "loss" / "commander.yaml").write_text(COMMANDER)

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
        helpers = Path(__file__).resolve().parent.parent / "helpers"
        paths = os.pathsep.join([str(helpers), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(program, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, **pipes)

    return start
