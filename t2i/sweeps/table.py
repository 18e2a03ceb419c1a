"""A sweep's progress: a table in the terminal; without a terminal, lines of the log."""

import logging
import math
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from t2i.runs.records import headline
from t2i.runs.text import printable
from t2i.sweeps.job import Job

log = logging.getLogger(__name__)
STATES = {  # of a job -> colour
    "finished": "green",
    "running": "cyan",
    "paused": "blue",
    "waiting": "dim",
    "stopped": "yellow",
    "interrupted": "yellow",
    "failed": "red",
}
MARGIN = 8  # lines of the screen for headings and the shell


class JobsTable:
    """A row for each job. Without a terminal, the log gets a line when a job ends, and the table is printed last."""

    def __init__(self, jobs: list[Job], n_jobs: int):
        self.jobs, self.n_jobs = jobs, n_jobs
        self.console = Console()
        if not self.console.is_terminal:
            self.console.width = 160  # a log has no width of its own
        self.live = Live(console=self.console, auto_refresh=False)
        self.started = time.monotonic()

    def __enter__(self) -> "JobsTable":
        if self.console.is_terminal:
            self.live.start()
        self.show()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.show()
            self.live.stop()
        elif len(self.jobs) > 1:
            self.console.print(self.table(self.jobs))

    def show(self) -> None:
        """Update the terminal. On a small screen, jobs that wait or have finished are only counted."""
        if self.console.is_terminal:
            rows = self.console.height - MARGIN
            active = [job for job in self.jobs if job.state in ("running", "failed")]
            self.live.update(self.table(self.jobs if len(self.jobs) <= rows else active[:rows]), refresh=True)

    def changed(self, job: Job) -> None:
        """Log that a job has ended or paused."""
        if not self.console.is_terminal:
            name = headline(job.metrics)
            result = f"{name} {job.metrics[name]:.5f}" if name else ""
            log.info("%s: %s · %s", *map(printable, (job.name, job.state, job.reason or result)))

    def table(self, shown: list[Job]) -> Table:
        """Rows for the jobs `shown` under a title that counts all."""
        counts = Counter(job.state for job in self.jobs)
        title = " · ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        if (left := self.seconds_left()) > 0:
            title += f" · about {_duration(left)} left"
        table = Table(title=title)
        for heading in ("job", "state"):
            table.add_column(heading)
        measured = next(filter(None, (headline(job.metrics) for job in self.jobs)), "val/loss")
        for heading in ("step", "loss", measured, "left"):
            table.add_column(heading, justify="right")
        for job in shown:
            losses = [f"{job.metrics[key]:.5f}" if key in job.metrics else "" for key in ("train/loss", measured)]
            step = f"{job.metrics.get('step', 0):.0f}/{job.steps}"
            state = printable(f"{job.state}: {job.reason}" if job.reason else job.state)
            cells = (Text(printable(job.name)), Text(state, STATES.get(job.state, "")))
            table.add_row(*cells, step, *losses, _duration(job.seconds_left()))
        return table

    def seconds_left(self) -> float:
        """The time that the sweep still needs at its present speed; NaN while that is unknown."""
        running = [job.seconds_left() for job in self.jobs if job.state == "running"]
        steps_done = sum(
            job.metrics["step"] - job.first_log[1]
            for job in self.jobs
            if job.first_log and job.state in ("finished", "running")
        )
        if not steps_done or any(map(math.isnan, running)):
            return math.nan
        waiting = [job for job in self.jobs if job.state in ("waiting", "paused")]
        steps_left = sum(job.steps - job.metrics.get("step", 0) for job in waiting)
        seconds_per_step = (time.monotonic() - self.started) / steps_done
        return sum(running) / max(1, len(running)) + steps_left * seconds_per_step


def _duration(seconds: float) -> str:
    """1:05, or 1 h 05 min; empty for NaN."""
    if math.isnan(seconds):
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{seconds:02d}"
