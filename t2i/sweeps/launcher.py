"""Runs the jobs of a sweep, each in its own process, so that the end of one job does not end the others.

On a machine without a GPU the processes are forked from one that has imported everything and computed nothing (Python's
forkserver), and a job starts in a fraction of a second. With a GPU each process starts from nothing, because CUDA does
not survive a fork.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any, NoReturn

from filelock import Timeout
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError
from t2i.runs.files import lock
from t2i.runs.folder import Run, RunExists
from t2i.runs.fork_rules import open_parent
from t2i.sweeps.job import Job, SweepError, command_line
from t2i.sweeps.manifest import as_begun
from t2i.sweeps.process import JobProcess, run_job
from t2i.sweeps.table import JobsTable

log = logging.getLogger(__name__)
PRELOADED = ["t2i.experiment.run", "t2i.models.stable_diffusion", "wandb", "wandb.apis.public"]
PATIENCE = 60  # seconds that an interrupted job has to write its checkpoint


class SweepRunner:
    """Runs the jobs of the sweep in `folder`; the options are those of conf/hydra/launcher/processes.yaml."""

    def __init__(self, folder: Path, main: Callable[[], Any], n_jobs: int | None, command: str | None):
        """main: a function of a module, which each job's process calls with the job's arguments in sys.argv."""
        self.folder, self.main, self.command = folder, main, command
        gpus = [] if command else _gpus()  # `command` chooses its GPUs itself
        self.n_jobs = n_jobs or max(1, len(gpus))
        self.devices = [gpus[i % len(gpus)] if gpus else None for i in range(self.n_jobs)]
        self.context = _process_context(forks=sys.platform == "linux" and not gpus and not command)
        self.jobs: list[Job] = []

    def run(self, configs: Sequence[DictConfig]) -> list[JobReturn]:
        """Run those of these jobs that are not finished: retry failed ones, continue paused ones."""
        read = [self._read_job(config) for config in configs]
        jobs = {job.folder: job for job in reversed(read)}  # 1e-3 and 0.001 are one job
        new = [jobs[folder] for folder in dict.fromkeys(job.folder for job in read)]
        if len(new) < len(read):
            log.info(
                "%d of %d jobs have the same values as another one, and are run once", len(read) - len(new), len(read)
            )
        self.jobs += new
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with _exit_when_interrupted(), lock(self.folder), JobsTable(self.jobs, self.n_jobs) as table:
                self._train(new, table)
        except Timeout as error:
            raise SweepError(f"t2i: {self.folder} is in use by another sweep process") from error
        failed = sum(job.state not in ("finished", "stopped") for job in new)
        error = SweepError(f"t2i: {failed} of {len(new)} jobs failed; run the same command again to retry them")
        return [jobs[job.folder].result(error) for job in read]

    def _train(self, jobs: list[Job], table: JobsTable) -> None:
        """Train every job to its end."""
        self._run_jobs({job: job.steps for job in jobs if job.unfinished}, table)

    def _read_job(self, config: DictConfig) -> Job:
        """A job in the state that its folder shows; refuses a folder that holds a run of another configuration.

        A job whose folder is damaged has failed, with the reason, and the others are run.
        """
        cfg = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        job = Job(folder, command_line(config, folder), cfg.steps, cfg.validate_every, cfg.seed)
        job.overrides = list(config.hydra.overrides.task)
        job.read_metrics()
        try:
            as_begun(cfg, folder, job.overrides)
            if (parent := open_parent(cfg, folder)) is not None and parent.only is None:
                job.begins_at = parent.step
            run = Run(folder, cfg, overrides=job.overrides)
        except RunExists as error:
            raise SweepError(f"t2i: {error}") from error
        except (ConfigError, OSError) as error:
            job.fail(error)
            log.warning("%s: %s", job.name, job.reason)
            return job
        if run.finished:
            job.state = "finished"
        return job

    def _run_jobs(self, last_steps: dict[Job, int], table: JobsTable) -> None:
        """Run each of these jobs to its step, `n_jobs` at a time."""
        waiting = list(last_steps)
        running: list[JobProcess] = []
        try:
            while waiting or running:
                for job in list(waiting):
                    if len(running) < self.n_jobs and not job.in_use():
                        waiting.remove(job)
                        try:
                            running.append(self._start(job, self._free_device(running), last_steps[job]))
                        except OSError as error:  # a full disk, or a file in the place of the folder
                            job.fail(error)
                            table.changed(job)
                wait([started.process.sentinel for started in running], timeout=1.0)
                for started in running:
                    started.job.read_metrics()
                for ended in [started for started in running if not started.process.is_alive()]:
                    running.remove(ended)
                    ended.record_end()
                    table.changed(ended.job)
                table.show()
        finally:
            for started in running:
                started.interrupt()
            for started in running:
                started.end(PATIENCE)

    def _free_device(self, running: list[JobProcess]) -> str | None:
        free = list(self.devices)
        for started in running:
            free.remove(started.device)
        return free[0]

    def _start(self, job: Job, device: str | None, last_step: int) -> JobProcess:
        job.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "main": self.main,
            "arguments": job.arguments + ([f"stop_at={last_step}"] if last_step < job.steps else []),
            "console": job.folder / "console.log",
            "environment": {} if device is None else {"CUDA_VISIBLE_DEVICES": device},
            "threads": max(1, _cores() // self.n_jobs) if self.n_jobs > 1 else None,
            "command": self.command,
        }
        with (job.folder / "console.log").open("a"):  # fails here rather than in the job's process
            pass
        job.state, job.reason, job.first_log = "running", "", None
        process = self.context.Process(target=run_job, kwargs=settings, name=job.name)
        started = JobProcess(job, device, process, before=job.token())
        started.process.start()
        return started


@contextmanager
def _exit_when_interrupted() -> Iterator[None]:
    """Within, SIGINT and SIGTERM let the jobs end; then the sweep's process exits with the signal's code."""
    received = signal.SIGINT

    def terminate(*_: Any) -> NoReturn:
        nonlocal received
        received = signal.SIGTERM
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        print("t2i: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(128 + received)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _process_context(forks: bool) -> ForkServerContext | SpawnContext:
    if not forks:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU")]
