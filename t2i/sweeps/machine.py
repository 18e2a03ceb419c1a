"""This machine as the place of a sweep's jobs.

Without a GPU the processes are forked from one that has imported everything and computed nothing (Python's forkserver),
and a job starts in a fraction of a second. With a GPU each process starts from nothing, because CUDA does not survive a
fork.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

from t2i.hardware.gpus import visible_gpus
from t2i.sweeps.job import Job
from t2i.sweeps.process import JobProcess, run_job

PRELOADED = ["t2i.experiment.run", "t2i.models.stable_diffusion", "wandb", "wandb.apis.public"]


class Machine:
    """Runs each job in a process of its own; the options are those of conf/hydra/launcher/processes.yaml."""

    def __init__(self, main: Callable[[], Any], n_jobs: int | None, command: str | None):
        """main: a function of a module, which each job's process calls with the job's arguments in sys.argv."""
        self.main, self.command = main, command
        gpus = [] if command else visible_gpus()  # `command` chooses its GPUs itself
        self.n_jobs = n_jobs or max(1, len(gpus))
        self.devices = [gpus[i % len(gpus)] if gpus else None for i in range(self.n_jobs)]
        self.context = _process_context(forks=sys.platform == "linux" and not gpus and not command)

    def follows(self, job: Job) -> bool:
        return False  # jobs end with the command that has begun them

    def start(self, job: Job, last_step: int, running: Sequence[JobProcess]) -> JobProcess:
        """Begin to run a job to a step."""
        device = self._free_device(running)
        settings = {
            "main": self.main,
            "arguments": job.until(last_step),
            "console": job.folder / "console.log",
            "environment": {} if device is None else {"CUDA_VISIBLE_DEVICES": device},
            "threads": max(1, _cores() // self.n_jobs) if self.n_jobs > 1 else None,
            "command": self.command,
        }
        process = self.context.Process(target=run_job, kwargs=settings, name=job.name)
        started = JobProcess(job, device, process, before=job.token())
        started.process.start()
        return started

    def wait(self, running: Sequence[JobProcess]) -> None:
        """Return when one of them has ended, at the latest after a second."""
        wait([started.process.sentinel for started in running], timeout=1.0)

    def _free_device(self, running: Sequence[JobProcess]) -> str | None:
        free = list(self.devices)
        for started in running:
            free.remove(started.device)
        return free[0]


def _process_context(forks: bool) -> ForkServerContext | SpawnContext:
    if not forks:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
