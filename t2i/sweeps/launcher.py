"""Runs the jobs of a sweep, each in its own process, so that the end of one job does not end the others."""

import logging
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

from filelock import Timeout
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, open_dict

from t2i.config import ConfigError
from t2i.runs.files import lock
from t2i.runs.folder import Run, RunExists
from t2i.runs.fork_rules import open_parent
from t2i.sweeps.job import Job, SweepError, command_line
from t2i.sweeps.manifest import as_begun
from t2i.sweeps.process import PATIENCE, JobAtWork
from t2i.sweeps.table import JobsTable

log = logging.getLogger(__name__)


class Place(Protocol):
    """Where the jobs of a sweep run."""

    @property
    def n_jobs(self) -> int:
        """How many jobs there is room for."""
        ...

    def follows(self, job: Job) -> bool:
        """Whether the job is run here already, by an earlier command; `start` then follows it."""
        ...

    def start(self, job: Job, last_step: int, running: Sequence[Any]) -> JobAtWork:
        """Begin to run a job to a step. running: those that this place has started, and which have not ended."""
        ...

    def wait(self, running: Sequence[Any]) -> None:
        """Return when one of them has ended, at the latest after a second."""
        ...


class SweepRunner:
    """Runs the jobs of the sweep in `folder`."""

    def __init__(self, folder: Path, place: Place):
        self.folder, self.place = folder, place
        self.jobs: list[Job] = []

    def run(self, configs: Iterable[DictConfig]) -> list[JobReturn]:
        """Run those of these jobs that are not finished: retry failed ones, continue paused ones.

        The configurations are read once, one after the other: those of a thousand jobs would take a gigabyte.
        """
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
            with _exit_when_interrupted(), lock(self.folder), JobsTable(self.jobs, self.place.n_jobs) as table:
                self._train(new, table)
        except Timeout as error:
            raise SweepError(f"t2i: {self.folder} is in use by another sweep process") from error
        if paused := sum(job.state == "paused" for job in new):
            log.info(
                "%d of %d jobs have paused; the same command goes on with them (without stop_at, if that was given)",
                paused,
                len(new),
            )
        failed = sum(not job.succeeded for job in new)
        error = SweepError(f"t2i: {failed} of {len(new)} jobs failed; run the same command again to retry them")
        return [jobs[job.folder].result(error) for job in read]

    def _train(self, jobs: list[Job], table: JobsTable) -> None:
        """Train every job to its end."""
        self._run_jobs({job: job.steps for job in jobs if job.unfinished}, table)

    def _read_job(self, config: DictConfig) -> Job:
        """A job in the state that its folder shows; refuses a folder that holds a run of another configuration.

        A job whose folder is damaged has failed, with the reason, and the others are run. config: loses its settings of
        Hydra's, as copying the others would take longer than all the rest.
        """
        folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        job = Job(folder, command_line(config, folder), config.steps, config.validate_every, config.seed)
        job.overrides, choices = list(config.hydra.overrides.task), dict(config.hydra.runtime.choices)
        with open_dict(config):
            del config["hydra"]
        job.read_metrics()
        try:
            as_begun(config, folder, job.overrides, choices)
            job.steps = config.steps
            if (parent := open_parent(config, folder)) is not None and parent.only is None:
                job.begins_at = parent.step
            run = Run(folder, config, overrides=job.overrides)
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
        """Run each of these jobs to its step, as many at a time as there is room for."""
        waiting = list(last_steps)
        running: list[JobAtWork] = []
        try:
            while waiting or running:
                for job in list(waiting):
                    if len(running) < self.place.n_jobs and (self.place.follows(job) or not job.in_use()):
                        waiting.remove(job)
                        try:
                            running.append(self._start(job, last_steps[job], running))
                        except OSError as error:  # a full disk, or a file in the place of the folder
                            job.fail(error)
                            table.changed(job)
                self.place.wait(running)
                for started in running:
                    started.job.read_metrics()
                for ended in [started for started in running if not started.alive]:
                    running.remove(ended)
                    ended.record_end()
                    table.changed(ended.job)
                    if ended.job.state == "waiting":  # its node was lost
                        waiting.append(ended.job)
                table.show()
        finally:
            for started in running:
                started.interrupt()
            for started in running:
                started.end(PATIENCE)

    def _start(self, job: Job, last_step: int, running: list[JobAtWork]) -> JobAtWork:
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / "console.log").open("a"):  # fails here rather than in the job's process
            pass
        job.state, job.reason, job.first_log = "running", "", None
        return self.place.start(job, last_step, running)


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
