"""The jobs of a sweep, each in a process of its own, so that what ends one job does not end the others.

On a machine without a GPU the processes are forks of one that has imported everything and computed nothing (Python's
forkserver): a job starts in a fraction of a second. With a GPU each starts from nothing: CUDA does not survive a fork.
"""

import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from filelock import Timeout
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError
from t2i.runs.files import lock, numbered_file
from t2i.runs.folder import Run
from t2i.sweeps.halving import hopeless
from t2i.sweeps.job import Job, JobsFailed, command_line
from t2i.sweeps.table import JobsTable

PRELOADED = ["t2i.experiment.run", "t2i.models.stable_diffusion", "wandb", "wandb.apis.public"]
PATIENCE = 60  # seconds that an interrupted job has to write down where it is


class Workshop:
    """Works through the jobs of the sweep in `folder`; the options are those of conf/hydra/launcher/processes.yaml."""

    def __init__(
        self,
        folder: Path,
        main: Callable[[], Any],
        n_jobs: int | None,
        command: str | None,
        rungs: Sequence[float],
        keep: float,
    ):
        """main: what a job's process calls, with the job's command line in sys.argv; found by its name there."""
        if not all(0 < rung < 1 for rung in rungs) or not 0 < keep < 1:
            raise JobsFailed(f"t2i: hydra.launcher.rungs={list(rungs)} and keep={keep} are shares: between 0 and 1")
        gpus = _gpus()
        self.folder, self.main, self.command, self.keep, self.rungs = folder, main, command, keep, sorted(rungs)
        self.n_jobs = n_jobs or (1 if command else max(1, len(gpus)))
        self.devices: list[str | None] = [None] * self.n_jobs
        if gpus and not command:
            self.devices = [gpus[i % len(gpus)] for i in range(self.n_jobs)]
        self.jobs: list[Job] = []
        forks = sys.platform == "linux" and not gpus and not command
        self.context = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self.context.set_forkserver_preload(PRELOADED)

    def run(self, configs: Sequence[DictConfig]) -> list[JobReturn]:
        """Do what is unfinished of these jobs; a failed one is tried again, a paused one goes on."""
        new = self._open(configs)
        self.jobs += new
        self.folder.mkdir(parents=True, exist_ok=True)
        ended_by = signal.SIGINT

        def terminate(*_: Any) -> None:
            nonlocal ended_by
            ended_by = signal.SIGTERM
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, terminate)
        try:
            with lock(self.folder), JobsTable(self.jobs, self.n_jobs) as table:
                for rung in self.rungs:
                    self._work([job for job in new if job.unfinished], table, rung)
                    self._halve(new, rung)
                self._work([job for job in new if job.unfinished], table)
        except Timeout as error:
            raise JobsFailed(f"t2i: {self.folder} is in use by another sweep process") from error
        except KeyboardInterrupt:
            print("t2i: interrupted; the same command goes on", file=sys.stderr)
            sys.exit(128 + ended_by)
        finally:
            signal.signal(signal.SIGTERM, before)
        failed = sum(job.state != "finished" and job.state != "stopped" for job in new)
        error = JobsFailed(f"t2i: {failed} of {len(new)} jobs failed; the same command tries them again")
        return [job.outcome(error) for job in new]

    def _open(self, configs: Sequence[DictConfig]) -> list[Job]:
        """The jobs as their folders show them; refuses, before any starts, folders of another configuration."""
        jobs = []
        for config in configs:
            cfg = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
            folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
            try:
                run = Run(folder, cfg)
            except ConfigError as error:
                raise JobsFailed(f"t2i: {error}") from error
            if self.rungs and not cfg.validate_every:
                raise JobsFailed("t2i: hydra.launcher.rungs compares validations; set validate_every, or rungs=[]")
            job = Job(folder, command_line(config, folder), cfg.steps, cfg.validate_every, cfg.seed)
            job.look()
            if run.finished or (run.info.get("state") == "stopped" and self.rungs):
                job.state, job.reason = run.info["state"], run.info.get("stopped", "")
            jobs.append(job)
        return jobs

    def _work(self, jobs: list[Job], table: JobsTable, rung: float = 1.0) -> None:
        """Run the jobs to the share `rung` of their steps, `n_jobs` at once."""
        waiting = [job for job in jobs if rung == 1 or job.info().get("paused_at", 0) < job.rung_step(rung)]
        running: list[Job] = []
        try:
            while waiting or running:
                for job in [job for job in waiting if len(running) < self.n_jobs and not job.in_use()]:
                    if len(running) == self.n_jobs:
                        break
                    free = list(self.devices)
                    for other in running:
                        free.remove(other.device)
                    self._start(job, free[0], rung)
                    waiting.remove(job)
                    running.append(job)
                wait([job.process.sentinel for job in running], timeout=1.0)
                for job in running:
                    job.look()
                for job in [job for job in running if not job.process.is_alive()]:
                    running.remove(job)
                    job.settle()
                    table.changed(job)
                table.show()
        finally:
            for job in running:
                job.interrupt()
            for job in running:
                job.process.join(PATIENCE)
                if job.process.is_alive():
                    os.killpg(job.process.pid, signal.SIGKILL)
                    job.process.join()
                job.settle()

    def _start(self, job: Job, device: str | None, rung: float) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        arguments = job.arguments + ([f"stop_at={job.rung_step(rung)}"] if rung < 1 else [])
        environment = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        threads = max(1, _cores() // self.n_jobs) if self.n_jobs > 1 else None
        settings = (self.main, arguments, job.folder / "console.log", environment, threads, self.command)
        job.process = self.context.Process(target=work, args=settings, name=job.name)
        job.state, job.reason, job.began, job.first, job.device = "running", "", time.time(), None, device
        job.process.start()

    def _halve(self, jobs: list[Job], rung: float) -> None:
        """Stop the jobs that are worse than the best beyond noise at this rung; those of each seed apart."""
        from t2i.runs.errors_file import read_errors

        for seed in sorted({job.seed for job in jobs}):
            files = {
                job.name: numbered_file(job.folder / "validation", job.rung_step(rung), "parquet")
                for job in jobs
                if job.seed == seed and job.state != "failed"
            }
            errors = {name: read_errors(file)[""] for name, file in files.items() if file.is_file()}
            verdicts = hopeless(errors, self.keep)
            for job in jobs:
                if job.unfinished and job.seed == seed and job.name in verdicts:
                    best, worse = verdicts[job.name]
                    job.state = "stopped"
                    job.reason = (
                        f"at step {job.rung_step(rung)} of {job.steps}: val/loss {worse.estimate:.1%} "
                        f"[{worse.low:.1%}, {worse.high:.1%}] above that of {best}"
                    )
                    Run.mark(job.folder, state="stopped", stopped=job.reason)


def work(
    main: Callable[[], Any],
    arguments: list[str],
    console: Path,
    environment: dict,
    threads: int | None,
    command: str | None,
) -> None:
    """What a job's process does: it becomes `python -m t2i.train ARGUMENTS`, and writes to `console`."""
    os.setpgrp()  # Ctrl-C in the terminal is for the sweep, which passes it on
    output = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    if command:
        code = subprocess.call([*shlex.split(command), *arguments])
        sys.exit(code if code >= 0 else 128 - code)
    if threads:
        import torch

        torch.set_num_threads(threads)
    sys.argv = ["t2i.train", *arguments]
    main()


def _end_with_the_sweep() -> None:
    """Interrupt this job when the sweep's process has died: nobody would wait for it, and the next sweep needs it."""
    wait([multiprocessing.parent_process().sentinel])
    os.killpg(os.getpgrp(), signal.SIGINT)


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
