"""The progress of a run: a bar in the terminal, or lines in the log if there is no terminal."""

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from t2i.runs.records import headline

log = logging.getLogger(__name__)
SHOWN = (
    ("train/loss", "loss", ".4f"),
    ("val/loss", "val/loss", ".5f"),
    ("val/ema/loss", "ema", ".5f"),
    ("val/train_loss", "val/train_loss (training images)", ".5f"),
    ("val/gap_since_start", "gap since start", "+.3f"),
    ("ref/loss", "ref", ".5f"),
    ("train/lr", "lr", ".1e"),
    ("speed/images_per_second", "images/s", ".1f"),
    ("memory/peak_gb", "GB", ".1f"),
)


class Bar:
    """A progress bar of `total` steps. shown: whether this process shows it."""

    def __init__(self, total: int, shown: bool):
        self.total, self.shown = total, shown
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = Console()
        self.live = console.is_terminal
        self.progress = Progress(*columns, console=console, disable=not (shown and self.live))
        self.task = self.progress.add_task("training", total=total, metrics="")
        self.first: tuple[float, int] | None = None  # time and step of what was shown first

    def __enter__(self) -> "Bar":
        self.progress.start()
        _log_to_stdout()  # rich has replaced it, to print log lines above the bar
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()
        _log_to_stdout()

    def advance(self, step: int, metrics: dict[str, float]) -> None:
        """Show a step and its metrics. Validation results go to the log too; without a terminal, all do."""
        shown = [f"{name} {metrics[key]:{form}}" for key, name, form in SHOWN if key in metrics]
        self.progress.update(self.task, completed=step)
        if "train/loss" in metrics:
            self.progress.update(self.task, metrics=" · ".join(shown))
        if not self.live and (left := self._left(step)):
            shown.append(f"{left} left")
        if self.shown and (not self.live or headline(metrics)):
            log.info("step %d/%d · %s", step, self.total, " · ".join(shown))

    def _left(self, step: int) -> str:
        """The time that the rest takes at the speed so far, with validations and samples; "" while it is unknown."""
        now = time.monotonic()
        began, first = self.first = self.first or (now, step)
        if step <= first or step >= self.total:
            return ""
        minutes, seconds = divmod(round((now - began) / (step - first) * (self.total - step)), 60)
        return f"{minutes}:{seconds:02}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _log_to_stdout() -> None:
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler and handler.stream is not sys.stderr:
            handler.setStream(sys.stdout)
