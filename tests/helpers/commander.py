"""A loss that does something to its own job at every fourth step, as a file named after the job's seed says.

The file holds one shell command per line, each of which is executed once. JOB is the run's job in Slurm. After a line
that begins with WAIT, the step lasts until the run has been warned; then, what follows THEN is executed. A file
SEED.steps gets a line for each step.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

from t2i.diffusion.losses import MinSNR
from t2i.distributed.slurm import this_job

PATIENCE = 90  # seconds; Slurm looks at time limits twice a minute


class Commander(MinSNR):
    def __init__(self, folder: str, seed: int, **settings):
        super().__init__(**settings)
        self.file, self.calls = Path(folder) / str(seed), 0
        if self.file.with_suffix(".start").is_file():  # before training
            self._execute(self.file.with_suffix(".start"), each=True)
        self.first = os.environ.get("RANK", "0") == "0"

    def __call__(self, prediction, noised, weight=None):
        self.calls += 1
        if self.first:
            with self.file.with_suffix(".steps").open("a") as steps:
                steps.write(f"{self.calls}\n")
            if self.calls % 4 == 0 and self.file.is_file():
                self._execute(self.file)
        return super().__call__(prediction, noised, weight)

    def _execute(self, file: Path, each: bool = False) -> None:
        command, *others = file.read_text().splitlines() or [""]
        if not each:
            file.write_text("".join(f"{line}\n" for line in others))
        at_once, _, then = command.removeprefix("WAIT ").partition(" THEN ")
        _shell(at_once)
        end = time.monotonic() + PATIENCE
        while command.startswith("WAIT ") and not _warned():
            assert time.monotonic() < end, f"no signal after {command}"
            time.sleep(0.05)
        _shell(then or "true")


def _shell(command: str) -> None:
    deaf = "trap '' USR1 USR2 TERM; "  # Slurm's signals reach every process of the job
    subprocess.run(deaf + command, shell=True, check=True, env=os.environ | {"JOB": this_job() or ""})


def _warned() -> bool:
    """Whether this process has noted a signal."""
    return signal.getsignal(signal.SIGTERM).__self__.signum is not None
