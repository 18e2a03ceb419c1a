"""A sweep while it runs, as a table in the terminal. Without a terminal the log has lines instead."""

import logging
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

log = logging.getLogger(__name__)
STATES = {  # of a sweep's jobs -> colour
    "finished": "green",
    "running": "cyan",
    "paused": "blue",
    "waiting": "dim",
    "stopped": "yellow",
    "interrupted": "yellow",
    "failed": "red",
}


class JobsTable:
    """A sweep while it runs: a row for each job. Without a terminal the log has a line for each change instead."""

    def __init__(self, jobs: list, n_jobs: int):
        self.jobs, self.n_jobs = jobs, n_jobs
        self.console = Console()
        if not self.console.is_terminal:
            self.console.width = 160  # a log has no edge
        self.live = Live(console=self.console, auto_refresh=False)
        self.began = time.monotonic()

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
            self.console.print(self.table(every=True))

    def show(self) -> None:
        if self.console.is_terminal:
            self.live.update(self.table(), refresh=True)

    def changed(self, job) -> None:
        """A job has ended, or paused."""
        if not self.console.is_terminal:
            result = f"val/loss {job.metrics['val/loss']:.5f}" if "val/loss" in job.metrics else ""
            log.info("%s: %s · %s", job.name, job.state, job.reason or result)

    def table(self, every: bool = False) -> Table:
        """The jobs; on a small screen those that wait or are done are only counted."""
        counts = Counter(job.state for job in self.jobs)
        title = " · ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        left = self.seconds_left()
        table = Table(title=title + (f" · about {_duration(left)} left" if left == left and left > 0 else ""))
        for heading in ("job", "state"):
            table.add_column(heading)
        for heading in ("step", "loss", "val/loss", "left"):
            table.add_column(heading, justify="right")
        shown = self.jobs
        if not every and len(shown) > self.console.height - 8:
            shown = [job for job in self.jobs if job.state in ("running", "failed")][: self.console.height - 8]
        for job in shown:
            values = [f"{job.metrics[key]:.5f}" if key in job.metrics else "" for key in ("train/loss", "val/loss")]
            left = job.seconds_left()
            step = f"{job.metrics.get('step', 0):.0f}/{job.steps}"
            state = f"[{STATES[job.state]}]{job.state}" + (f": {escape(job.reason)}" if job.reason else "")
            table.add_row(escape(job.name), state, step, *values, _duration(left) if left == left else "")
        return table

    def seconds_left(self) -> float:
        """Of the whole sweep, at the rate so far; not a number before a step has been seen."""
        running = [job.seconds_left() for job in self.jobs if job.state == "running"]
        done = [job for job in self.jobs if job.state in ("finished", "running") and job.first]
        steps = sum(job.metrics["step"] - job.first[1] for job in done)
        if not steps or any(left != left for left in running):
            return float("nan")
        to_do = sum(job.steps - job.metrics.get("step", 0) for job in self.jobs if job.state in ("waiting", "paused"))
        return sum(running) / max(1, len(running)) + to_do * (time.monotonic() - self.began) / steps


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{seconds:02d}"
