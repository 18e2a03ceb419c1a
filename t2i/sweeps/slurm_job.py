"""A job of a sweep that Slurm runs, or will run."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from t2i.config import ConfigError
from t2i.distributed.slurm import show
from t2i.sweeps.job import Job
from t2i.sweeps.process import JobAtWork, Losses, killed_by, last_lines
from t2i.sweeps.slurm_queue import STUCK, Queue
from t2i.sweeps.slurm_script import AGAIN

log = logging.getLogger(__name__)
GRACE = 10.0  # seconds after a job's end in which other machines may not yet see what it has written
ENDED_BY_SLURM = ("TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL")
LINES, LINES_OF_SLURM = 5, 3  # of a lost job's output that are shown


@dataclass
class SlurmJob(JobAtWork):
    """Follows a job of the sweep in Slurm's queue.

    outcome: Slurm's word for how it ended; "gone" if Slurm no longer knows, "never begun" if there was no need to;
        "" before the end.
    """

    job: Job
    arguments: list[str]
    queue: Queue
    losses: Losses
    before: str | None = None
    id: str | None = None  # array job and index, such as 12_3; None before it is submitted
    folder: Path | None = None  # of the submission
    looks: int = 0  # that the queue had been given when the job was submitted
    runs_other: bool = False  # than what this sweep now wants of it: an earlier command has begun it
    running: bool = False
    outcome: str = ""
    ended_at: float = 0.0

    def follow(self) -> None:
        """Take the job's state from the queue."""
        if self.id is None or self.outcome:
            return
        entry = self.queue.entries.get(self.id)
        if entry is None:
            if self.queue.looks > self.looks + 1:  # Slurm forgets what has ended
                self._ended("gone")
        elif entry.ended:
            self._ended(entry.state)
        elif entry.state == "RUNNING" and not self.running:
            self.running = True
            self.job.state, self.job.reason, self.job.first_log = "running", "", None
        elif entry.state == "PENDING":
            self._wait(entry.reason)

    def _wait(self, why: str) -> None:
        """The job is in the queue, for this reason."""
        if self.running:
            log.info("%s: queued again, at step %d", self.job.name, self.job.metrics.get("step", 0))
        reason = f"queued ({why})"
        if self.job.reason != reason and any(word in why for word in STUCK):
            log.warning("%s: Slurm does not begin job %s: %s", self.job.name, self.id, why)
        self.running, self.job.state, self.job.reason = False, "waiting", reason

    def _ended(self, outcome: str) -> None:
        self.outcome, self.ended_at = outcome, time.monotonic()

    @property
    def alive(self) -> bool:
        if not self.outcome:
            return True
        return not self._told() and time.monotonic() < self.ended_at + GRACE

    def _told(self) -> bool:
        """Whether run.json says how the job ended."""
        try:
            info = self.job.info()
        except (ConfigError, OSError):
            return True
        return info.get("process") != self.before and info.get("state", "running") != "running"

    def interrupt(self) -> None:
        """Slurm goes on with the job: the same command follows it."""

    def end(self, patience: float) -> None:
        if self.id is not None:
            self.queue.leave(self.id)

    def record_end(self) -> None:
        self.job.read_metrics()
        again = "" if self.job.finished() else self._ended_by_slurm()
        if again and self.losses.again(self.job.metrics.get("step", 0.0)):
            log.warning("%s: %s; it is submitted again, from its last checkpoint", self.job.name, again)
            self.job.state, self.job.reason = "waiting", ""
            return
        super().record_end()
        if self.job.state == "interrupted":
            self._say_why()
        elif self.runs_other and self.job.state == "paused":
            self.job.state = "waiting"

    def _ended_by_slurm(self) -> str:
        """Why Slurm took the job's nodes away without queueing it again; "" if the job ended by itself."""
        if self.outcome in ENDED_BY_SLURM:
            return f"Slurm ended job {self.id} ({self.outcome})"
        if self.outcome == "FAILED" and self._code() == AGAIN:
            return f"Slurm did not queue job {self.id} again"
        return ""

    def _say_why(self) -> None:
        """Of a job that has written a checkpoint and then ended for good."""
        if self.outcome == "CANCELLED":
            self.job.reason = "cancelled"
        else:
            self.job.state, self.job.reason = "failed", self.cause_of_death()

    def _code(self) -> int:
        """The exit code of the batch script."""
        code = show("job", self.id or "").get("ExitCode", "0:0").partition(":")[0]
        return int(code) if code.isdigit() else 0

    def cause_of_death(self) -> str:
        console = self.job.folder / "console.log"
        own = self.folder / f"{self.id.partition('_')[2]}.log" if self.folder and self.id else None
        lines, of_slurm = last_lines(console, LINES), last_lines(own, LINES_OF_SLURM) if own else []
        for line in [*lines, *of_slurm]:
            log.warning("%s: | %s", self.job.name, line)
        if self.outcome == "COMPLETED" and not console.is_file():
            return f"it ended, but {self.job.folder} shows nothing of it; all nodes must share this folder"
        code = self._code()
        how = killed_by(code - 128) if code > 128 else f"exit code {code}" if code else ""
        said = [*of_slurm, *lines][-1:] if code <= 128 else []
        return ": ".join(filter(None, (f"Slurm job {self.id} {self.outcome}", how, *said))).replace(": t2i: ", ": ")
