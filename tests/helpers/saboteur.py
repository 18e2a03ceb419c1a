"""A loss that ends its job once, at the fourth step, in the way that a file named after the job's seed says.

A file SEED.RANK ends one of the run's processes.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

from t2i.diffusion.losses import MinSNR


class Saboteur(MinSNR):
    def __init__(self, folder: str, seed: int, **settings):
        super().__init__(**settings)
        ranked = Path(folder) / f"{seed}.{os.environ.get('RANK', 0)}"
        self.file, self.calls = ranked if ranked.is_file() else Path(folder) / str(seed), 0

    def __call__(self, prediction, noised, weight=None):
        self.calls += 1
        if self.calls == 4 and self.file.is_file():
            deed = self.file.read_text()
            self.file.unlink()
            DEEDS[deed]()
        return super().__call__(prediction, noised, weight)


def fail():
    raise RuntimeError("the fourth step failed")


DEEDS = {
    "raise": fail,
    "exit": lambda: sys.exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "kill the sweep": lambda: os.kill(multiprocessing.parent_process().pid, signal.SIGKILL),
}
