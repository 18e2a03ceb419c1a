"""The tables of a comparison, as the terminal, the page and the files show them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from t2i.comparison.factors import as_text
from t2i.comparison.results import Result
from t2i.comparison.verdicts import Comparison, Setting, interval, number, percent
from t2i.evaluation.metrics import Metric, bin_metrics


@dataclass(frozen=True)
class Cell:
    text: str
    value: Any = None  # what it is sorted by; None: its text
    style: str = ""  # better, worse, same, baseline, or a state
    shade: float | None = None  # how strongly it is coloured, from 0 to 1


def bin_names(comparison: Comparison) -> list[str]:
    """Headings of the SNR bins."""
    last = len(bin_metrics("", comparison.num_timesteps)) - 1
    return [{0: "0 noisy", last: f"{last} clean"}.get(i, str(i)) for i in range(last + 1)]


def setting_rows(comparison: Comparison, metric: Metric) -> list[dict[str, Cell]]:
    """One row for each setting, its seeds pooled, best first."""
    raw, averaged = (metric.twin, metric) if metric.weights else (metric, metric.twin)
    columns: dict[str, Callable[[Setting], Cell]] = {
        "setting": lambda setting: _label(comparison, setting),
        "seeds": lambda setting: _seeds(setting.runs),
        **{each.name: lambda setting, each=each: _pooled(setting, each) for each in (raw, averaged)},
        "since start": lambda setting: _share(setting.values(lambda run: run.change(metric)).mean()),
    }
    for name, each in zip(bin_names(comparison), bin_metrics(metric.weights, comparison.num_timesteps), strict=True):
        columns[name] = lambda setting, each=each: _number(setting.values(lambda run: run.value(each)).mean(), 3)
    columns |= {
        "images/s": lambda setting: _number(setting.values(lambda run: run.images_per_second).mean(), 3),
        "GB": lambda setting: _number(setting.values(lambda run: run.peak_memory_gb).max(), 3),
        "hours": lambda setting: _number(setting.values(lambda run: run.hours).mean(), 2),
    }
    order = sorted(comparison.settings, key=lambda setting: setting.values(lambda run: run.value(metric)).mean())
    return [{name: of(setting) for name, of in columns.items()} for setting in order]


def difference_rows(comparison: Comparison, metric: Metric) -> list[dict[str, Cell]]:
    """One row for each setting that is tested against the baseline, best first."""
    verdicts = comparison.verdicts(metric)
    largest = max((abs(each.estimate) for verdict in verdicts for each in verdict.bins), default=0) or 1
    rows = []
    for verdict in verdicts:
        total, p = verdict.total, verdict.p
        row = {
            "setting": Cell(verdict.setting.label),
            "seeds": Cell(str(verdict.seeds), verdict.seeds),
            "difference": Cell(f"{percent(total.estimate)} {interval(total)}", total.estimate),
            "p": Cell("<0.001" if p < 0.001 else f"{p:.3f}", p),
            "verdict": Cell(verdict.words, style=verdict.outcome),
        }
        for name, each, outcome in zip(bin_names(comparison), verdict.bins, verdict.bin_outcomes, strict=True):
            text, shade = percent(each.estimate).removesuffix(" %"), round(abs(each.estimate) / largest, 3)
            row[name] = Cell(text, each.estimate, outcome, shade)
        rows.append(row)
    return rows


def run_rows(comparison: Comparison, metric: Metric) -> list[dict[str, Cell]]:
    """One row for each run that was found, those that are not compared last."""
    left_out = comparison.left_out
    return [
        {
            "run": Cell(run.name),
            "setting": Cell(comparison.keys.label(run) if run.config else "–"),
            "seed": Cell(as_text(run.seed) if run.config else "–", -1 if run.seed is None else run.seed),
            "state": Cell(run.state, style=run.state),
            "step": Cell("–" if run.step is None else str(run.step), -1 if run.step is None else run.step),
            metric.name: _number(float("nan") if run.step is None else run.value(metric)),
            "hours": _number(run.hours, 2),
            "not compared": Cell(left_out.get(run, "")),
        }
        for run in sorted(comparison.results, key=lambda run: run in left_out)
    ]


def write_results(comparison: Comparison, folder: Path) -> None:
    """results.csv and results.parquet: one row for each run, with its setting and the last value of every metric."""
    rows = [_record(comparison, run) for run in comparison.results]
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    table = pa.table({name: _array(values) for name, values in columns.items()})
    pq.write_table(table, folder / "results.parquet")
    pa.csv.write_csv(table, folder / "results.csv")


def _record(comparison: Comparison, run: Result) -> dict[str, Any]:
    return {
        "run": run.name,
        "setting": comparison.keys.label(run) if run.config else None,
        "seed": run.seed,
        "state": run.state,
        "compared": run not in comparison.left_out,
        "not_compared": comparison.left_out.get(run),
        "step": run.step,
        "hours": run.latest.get("speed/hours"),
        **{key: run.setting(key) for key in (*comparison.keys.by, *comparison.keys.paired)},
        **{key: value for key, value in run.latest.items() if key != "step"},
    }


def _array(values: list[Any]) -> pa.Array:
    """A column of one type: texts where there are several."""
    kinds = {float if isinstance(value, int) and not isinstance(value, bool) else type(value) for value in values}
    if len(kinds - {type(None)}) > 1 or kinds & {list, dict}:
        return pa.array([None if value is None else as_text(value) for value in values])
    return pa.array(values)


def _label(comparison: Comparison, setting: Setting) -> Cell:
    is_baseline = setting is comparison.baseline and len(comparison.settings) > 1
    return Cell(setting.label, style="baseline" if is_baseline else "")


def _seeds(runs: dict[tuple, Result]) -> Cell:
    seeds = {run.seed for run in runs.values()}
    return Cell(str(len(seeds)) if len(seeds) == len(runs) else f"{len(seeds)} ({len(runs)} runs)", len(seeds))


def _pooled(setting: Setting, metric: Metric) -> Cell:
    """The mean over the runs, and their standard deviation."""
    values = setting.values(lambda run: run.value(metric))
    mean = float(values.mean())
    if len(values) == 1 or not np.isfinite(mean):
        return _number(mean)
    return Cell(f"{number(mean)} ± {number(values.std(ddof=1), 1)}", mean)


def _number(value: float, digits: int = 4) -> Cell:
    return Cell(number(value, digits), float(value))


def _share(value: float) -> Cell:
    return Cell(percent(value), float(value)) if np.isfinite(value) else Cell("–", float("nan"))
