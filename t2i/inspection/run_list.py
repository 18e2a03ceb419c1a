"""Runs as a list: state, settings that differ, losses, time. Sweeps are groups."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2i.comparison.factors import NO_FACTORS, as_text, find_factors
from t2i.comparison.results import Result
from t2i.config.keys import belongs
from t2i.runs.files import listing
from t2i.runs.records import headline
from t2i.runs.text import printable
from t2i.sweeps.manifest import MANIFEST

NO_SETTINGS = ("hydra", *(key for key in NO_FACTORS if key != "seed"))
STATES = ("running", "finished", "stopped", "paused", "interrupted", "failed", "killed", "never begun", "unreadable")
WRITTEN = "%Y-%m-%dT%H:%M:%S%z"  # dates in run.json


def last_step(run: Result) -> int:
    """The last step of the log or of a checkpoint, which an interrupted run writes between two lines of the log."""
    checkpoints = []
    with suppress(OSError):  # such as a lack of permission
        checkpoints = [folder.name.removeprefix("step-") for folder in listing(run.folder / "checkpoints")]
    logged = int(run.lines[-1]["step"]) if run.lines else 0
    return max([logged, *(int(step) for step in checkpoints if step.isdecimal())])


@dataclass(frozen=True)
class Row:
    """A run in the list."""

    run: Result
    name: str  # of its folder, below that of its group
    settings: str  # those in which it differs from the others of its sweep; of other runs, what was typed

    @property
    def steps(self) -> str:
        planned = self.run.config.get("steps")
        return f"{last_step(self.run)}/{planned}" if planned is not None else "–"

    def loss(self, averaged: bool = False) -> float:
        """What the run is judged by, at its last validation; NaN if there was none."""
        name = headline(self.run.latest)
        return self.run.latest.get(name.replace("val/", "val/ema/", 1) if averaged else name, float("nan"))

    @property
    def on_training_images(self) -> bool:
        return headline(self.run.latest) == "val/train_loss"

    @property
    def started(self) -> float:
        """In seconds as time.time() counts them; NaN if that is unknown."""
        try:
            return time.mktime(time.strptime(str(self.run.info.get("started")), WRITTEN))
        except (ValueError, OverflowError):
            return float("nan")

    @property
    def date(self) -> str:
        if math.isnan(self.started):
            return "–"
        started = time.localtime(self.started)
        same_year = started.tm_year == time.localtime().tm_year
        return time.strftime("%m-%d %H:%M" if same_year else "%Y-%m-%d", started)


@dataclass
class Group:
    """The runs of a sweep, or those of none."""

    name: str  # "" for runs of no sweep
    rows: list[Row] = field(default_factory=list)

    @property
    def counts(self) -> str:
        """How many runs are in each state."""
        counts = Counter(row.run.state for row in self.rows)
        known = [state for state in STATES if counts[state]]
        return ", ".join(f"{counts[state]} {state}" for state in [*known, *sorted(counts.keys() - set(STATES))])


ORDERS = {  # --sort -> what is smallest comes first
    "date": lambda row: -row.started,
    "loss": lambda row: row.loss() if row.run.finished else float("nan"),  # the others have not learned as long
    "time": lambda row: -row.run.hours,
    "steps": lambda row: -last_step(row.run),
    "name": lambda row: row.name,
}


def grouped(results: Sequence[Result], order: str = "date") -> list[Group]:
    """The runs by sweep, sorted; a sweep stands where its first run would."""
    by_sweep: dict[Path | None, list[Result]] = {}
    for run in results:
        sweep = run.folder.parent if (run.folder.parent / MANIFEST).is_file() else None
        by_sweep.setdefault(sweep, []).append(run)
    groups = [
        _sweep(sweep, runs) if sweep else Group("", [Row(run, run.name, _typed(run)) for run in runs])
        for sweep, runs in by_sweep.items()
    ]
    key = _last_if_nan(order)
    for group in groups:
        group.rows.sort(key=key)
    return sorted(groups, key=lambda group: key(group.rows[0]))


def _last_if_nan(order: str) -> Any:
    def key(row: Row) -> tuple:
        value = ORDERS[order](row)
        unknown = isinstance(value, float) and math.isnan(value)
        return (unknown, 0 if unknown else value, row.name)

    return key


def _sweep(folder: Path, runs: Sequence[Result]) -> Group:
    known = [run for run in runs if run.config]
    factors = find_factors(known, None) if known else None
    seeds = {run.seed for run in known}
    rows = []
    for run in runs:
        label = factors.label(run) if factors and run.config and factors.by else ""
        seed = f"seed={as_text(run.seed)}" if len(seeds) > 1 and run.config else ""
        rows.append(Row(run, printable(run.folder.name), " ".join(filter(None, (label, seed))) or _typed(run)))
    name = runs[0].name.rpartition("/")[0] or folder.name
    return Group(printable(name), rows)


def _typed(run: Result) -> str:
    """The overrides that say what the run trains: not where it is, nor what is recorded of it."""
    overrides = [text for text in run.info.get("overrides", []) if isinstance(text, str)]
    told = [text for text in overrides if not belongs(text.lstrip("+~").partition("=")[0], NO_SETTINGS)]
    return printable(" ".join(told))


def as_json(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Everything in the list, for scripts."""
    return [
        {
            "folder": str(row.run.folder),
            "name": row.run.name,
            "sweep": group.name or None,
            "state": row.run.state,
            "reason": row.run.reason,
            "settings": row.settings,
            "seed": row.run.seed,
            "step": last_step(row.run),
            "steps": row.run.config.get("steps"),
            "metric": headline(row.run.latest) or None,
            "loss": _or_null(row.loss()),
            "ema_loss": _or_null(row.loss(averaged=True)),
            "hours": _or_null(row.run.hours),
            "started": row.run.info.get("started"),
            "ended": row.run.info.get("ended"),
            "goes_on_from": [[str(folder), step] for folder, step in row.run.ancestors],
        }
        for group in groups
        for row in group.rows
    ]


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
