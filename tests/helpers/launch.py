"""Commands for `t2i.train`, in several processes with gloo on the CPU, and with losses of the tests' own."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.runs import free_port

ACCELERATE = Path(sys.executable).parent / "accelerate"
HELPERS = Path(__file__).resolve().parent
OPTIONS = HELPERS / "options"  # loss=saboteur, loss=commander, which are imported from
WITH_HELPERS = os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])  # this PYTHONPATH
CORRUPTED = ("double free or corruption", "malloc(): ", "free(): ", "corrupted ")  # how glibc's last words begin


def train(
    processes: int,
    settings: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "t2i.train"),
) -> subprocess.CompletedProcess:
    """Train in `folder`. program: what `accelerate launch` runs if there is more than one process.

    Gloo has been seen to corrupt its own memory (once in some hundred launches), upon which glibc aborts the process.
    Then the same command goes on with the run, as a user would.
    """
    command = [sys.executable, "-m", "t2i.train"]
    if processes > 1:
        command = [str(ACCELERATE), "launch", "--multi_gpu", "--num_processes", str(processes), *program]
    flags_first = sorted(settings, key=lambda setting: not setting.startswith("-"))  # as Hydra reads its command line
    variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MASTER_PORT": free_port()}

    def launch() -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, *flags_first, "threads=1"],
            cwd=folder,
            env=os.environ | variables | (environment or {}),
            capture_output=True,
            text=True,
        )

    run = launch()
    return launch() if any(line in run.stderr for line in CORRUPTED) else run
