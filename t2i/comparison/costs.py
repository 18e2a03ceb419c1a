"""What runs have cost, from their own records, and what runs of another size would."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from t2i.comparison.power import Size
from t2i.comparison.results import Result
from t2i.runs.records import headline


@dataclass(frozen=True)
class Cost:
    """Seconds of one run, and of its parts; NaN where the records don't tell."""

    start: float  # until training begins: loading, encoding what was not in the cache
    steps: int
    per_step: float
    validations: int
    per_validation: float  # with the samples that are drawn at the same steps
    size: Size  # of the battery that was measured

    def hours(self, size: Size, variants: int) -> float:
        """Of a comparison of so many variants; a validation takes as long as it has images times levels."""
        cells = size.images * size.levels / (self.size.images * self.size.levels)
        run = self.start + self.steps * self.per_step + self.validations * self.per_validation * cells
        return variants * size.seeds * run / 3600


def cost_of(runs: Sequence[Result], size: Size) -> Cost:
    """The medians over the runs."""
    rows = [_row(run) for run in runs]
    start, steps, per_step, validations, per_validation = np.nanmedian(rows, axis=0)
    return Cost(float(start), int(steps), float(per_step), int(validations), float(per_validation), size)


def _row(run: Result) -> tuple[float, int, float, int, float]:
    speed = run.images_per_second
    per_step = run.config.get("batch_size", np.nan) / speed if speed > 0 else np.nan
    validated = [line for line in run.lines if headline(line)]
    steps = int(run.lines[-1]["step"]) if run.lines else 0
    return (_start(run), steps, per_step, len(validated), _per_validation(run, per_step))


def _per_validation(run: Result, per_step: float) -> float:
    """What lines with a validation took longer than their steps, at the median."""
    extra, before = [], None
    for line in run.lines:
        seconds = 3600 * line.get("speed/hours", np.nan)
        if headline(line):
            began, step = before or (0.0, 0)  # the clock starts with the validation before the first step
            extra.append(seconds - began - per_step * (line["step"] - step))
        before = (seconds, line["step"])
    known = [value for value in extra if np.isfinite(value)]
    return max(float(np.median(known)), 0.0) if known else np.nan


def _start(run: Result) -> float:
    """Seconds from the start of the process to that of training; 0 for a run that was continued."""
    if "paused_at" in run.info:  # as all runs of a race were
        return 0.0
    try:
        began, ended = (datetime.strptime(run.info[key], "%Y-%m-%dT%H:%M:%S%z") for key in ("started", "ended"))
    except (KeyError, ValueError, TypeError):
        return 0.0
    start = (ended - began).total_seconds() - 3600 * run.hours
    return start if 0 <= start < 3600 * max(run.hours, 0.05) else 0.0  # it waited, or was continued later
