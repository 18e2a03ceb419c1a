"""A Slurm cluster as the place of a sweep's jobs.

The jobs are one job array, whose tasks train as `t2i train` does and write checkpoints when Slurm warns them. Slurm's
queue is the only record of what runs, so that a command can follow what an earlier one has submitted. The nodes share
the folders of the sweep, of the data and of t2i.
"""

import fcntl
import json
import logging
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.config import ConfigError
from t2i.config.secrets import redact
from t2i.distributed.slurm import PATIENCE
from t2i.runs.files import atomic_write, read_json
from t2i.runs.links import open_in_place
from t2i.runs.text import one_line
from t2i.sweeps.job import Job, SweepError
from t2i.sweeps.process import Losses
from t2i.sweeps.slurm_job import SlurmJob
from t2i.sweeps.slurm_queue import Queue
from t2i.sweeps.slurm_script import SlurmOptions

log = logging.getLogger(__name__)
SUBMITTED = ".slurm"  # the folder of a sweep's submissions; the sweep's other folders are runs
JOBS, SCRIPT = "jobs.json", "job.sh"
REMEDY = "end its jobs with scancel, and delete its folder"
SMALLEST_ARRAY = 1000  # jobs that an array may have on every cluster that does not say otherwise


@dataclass(frozen=True)
class Earlier:
    """A job in Slurm's queue that an earlier command has submitted."""

    id: str
    folder: Path  # of the submission
    arguments: list[str]


class SlurmCluster:
    """Runs each job as a task of a Slurm job array."""

    def __init__(self, main: Callable[[], Any], folder: Path, options: SlurmOptions):
        """main: a function of a module, which each job's process calls with the job's arguments in sys.argv.

        folder: of the sweep. Raises SweepError where no jobs can be submitted.
        """
        self.main, self.folder, self.options = main, folder.absolute() / SUBMITTED, options
        if shutil.which("sbatch") is None:
            raise SweepError(
                "t2i: hydra/launcher=slurm: there is no sbatch; start the sweep on a login node of the cluster, or use "
                "hydra/launcher=processes"
            )
        self.queue = Queue(options.poll_s)
        with self._submitting():
            self.queue.look()
        if self.queue.error:
            raise SweepError(f"t2i: hydra/launcher=slurm: {self.queue.error}; nothing was submitted")
        self.earlier = self._earlier_jobs()
        self.lost: dict[Job, Losses] = {}

    @property
    def n_jobs(self) -> int:
        return self.options.n_jobs or 1_000_000_000

    def follows(self, job: Job) -> bool:
        return job.folder.absolute() in self.earlier

    def start(self, job: Job, last_step: int, running: Sequence["SlurmJob"]) -> SlurmJob:
        """A job that `wait` will submit together with others, unless it is in Slurm's queue already."""
        losses = self.lost.setdefault(job, Losses(self.options.retries))
        started = SlurmJob(job, job.until(last_step), self.queue, losses, before=job.token())
        if (earlier := self.earlier.pop(job.folder.absolute(), None)) is not None:
            started.id, started.folder, started.before = earlier.id, earlier.folder, None
            started.runs_other = earlier.arguments != started.arguments
            log.info("%s: follows job %s, which an earlier command has submitted", job.name, earlier.id)
        elif job.finished():  # another command has seen to it since
            started.outcome, started.before = "never begun", None
        return started

    def wait(self, running: Sequence["SlurmJob"]) -> None:
        """Submit what is new, and look at the others; takes a second."""
        if new := [started for started in running if started.id is None and not started.outcome]:
            self._submit(new)
        else:
            time.sleep(1.0)
        self.queue.look()
        for started in running:
            started.follow()

    def _submit(self, jobs: list[SlurmJob]) -> None:
        """Submit jobs as one array; as several, one after the other, if there are more than Slurm takes."""
        largest, array = _largest_array(), None
        for begin in range(0, len(jobs), largest):
            part = jobs[begin : begin + largest]
            folder = self._write(part)
            array = self._sbatch(folder, len(part), after=array)
            for index, started in enumerate(part):
                started.id, started.folder, started.looks = f"{array}_{index}", folder, self.queue.looks
            log.info(
                "submitted %d jobs as Slurm's job array %s, at most %d at once",
                *(len(part), array, min(len(part), self.options.array_parallelism)),
            )

    def _write(self, jobs: list[SlurmJob]) -> Path:
        """Write what the nodes need to know of some jobs; returns its folder."""
        folder = self.folder / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(4)}"
        content = {
            "main": [self.main.__module__, self.main.__qualname__],
            "folder": os.getcwd(),
            "signal_delay_s": self.options.signal_delay_s,
            "retries": self.options.retries,
            "jobs": [
                {"folder": str(started.job.folder.absolute()), "arguments": started.arguments} for started in jobs
            ],
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        script = self.options.script(folder, os.environ.get("PYTHONPATH"))
        if redact(text) != text or redact(script) != script:
            raise ConfigError(
                "an override holds a password of the environment, which would be written to a file for Slurm's nodes; "
                "leave it in the environment"
            )
        folder.mkdir(parents=True)
        atomic_write(folder / JOBS, text)
        (folder / SCRIPT).write_text(script)
        return folder

    def _sbatch(self, folder: Path, jobs: int, after: str | None) -> str:
        """Submit what `_write` has written; returns the number of the array."""
        flags = self.options.flags(self.folder.parent.name, jobs)
        flags.append(f"--output={str(folder).replace('%', '%%')}/%a.log")  # %a: the number of the job
        flags += [f"--dependency=afterany:{after}"] if after else []
        command = ["sbatch", "--parsable", *flags, str(folder / SCRIPT)]
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10 * PATIENCE}
        try:
            with self._submitting() as held:
                said = subprocess.run(command, check=True, pass_fds=held, **settings)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(folder)
            raise SweepError(f"t2i: {' '.join(error.stderr.split()) or one_line(error)}; see hydra.launcher") from error
        except (OSError, subprocess.SubprocessError) as error:
            raise SweepError(f"t2i: sbatch: {one_line(error)}") from error
        return said.stdout.strip().partition(";")[0]

    @contextmanager
    def _submitting(self) -> Generator[tuple[int, ...]]:
        """Within, no sbatch of this sweep runs but one that inherits these file descriptors.

        If the command is killed while sbatch runs, the next command waits for it here, and finds its jobs in the queue.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "a", opener=open_in_place) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # the file system knows no locks
                yield ()
                return
            yield (file.fileno(),)

    def _earlier_jobs(self) -> dict[Path, Earlier]:
        """run folder -> the job in Slurm's queue that works there, or will."""
        found, contents = {}, {}
        for job, entry in self.queue.entries.items():
            folder = Path(entry.script).parent
            if entry.ended or folder.parent != self.folder:
                continue
            if folder not in contents:
                contents[folder] = submitted(folder)
            index = job.partition("_")[2]
            if index.isdecimal() and int(index) < len(contents[folder]):
                run, arguments = contents[folder][int(index)]
                found[run] = Earlier(job, folder, arguments)
        return found


def submitted(folder: Path) -> list[tuple[Path, list[str]]]:
    """Run folder and arguments of each job in a submission. Raises ConfigError if its file is damaged."""
    jobs = read_json(folder / JOBS, REMEDY).get("jobs")
    try:
        return [(Path(job["folder"]), list(map(str, job["arguments"]))) for job in jobs or ()]
    except (TypeError, LookupError) as error:
        raise ConfigError(f"{folder / JOBS} does not hold jobs; {REMEDY}") from error


def _largest_array() -> int:
    """How many jobs an array may have; their numbers begin with 0."""
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=PATIENCE).stdout
    for line in shown.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    return SMALLEST_ARRAY
