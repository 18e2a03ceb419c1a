"""The tables of a comparison, for the terminal, the page and the files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from t2i.comparison.factors import as_text
from t2i.comparison.results import Result
from t2i.comparison.verdicts import AnyMetric, Comparison, Variant
from t2i.comparison.wording import difference_text, number, percent, verdict_word
from t2i.runs.files import replacing
from t2i.runs.text import printable, spreadsheet_cell


@dataclass(frozen=True)
class Cell:
    text: str
    value: Any = None  # what the column is sorted by; None: the text
    style: str = ""  # better, worse, same, baseline, or a run's state
    shade: float | None = None  # strength of the background colour, from 0 to 1; None: no colour


def bin_names(comparison: Comparison, metric: AnyMetric) -> list[str]:
    """Headings of the SNR bins."""
    last = len(comparison.bins(metric)) - 1
    return [{0: "0 noisy", last: f"{last} clean"}.get(i, str(i)) for i in range(last + 1)]


def variant_rows(comparison: Comparison, metric: AnyMetric) -> list[dict[str, Cell]]:
    """One row for each variant with its seeds pooled, best first."""
    variants = sorted(comparison.variants, key=lambda variant: metric.sign * variant.mean(metric))
    return [_variant_row(comparison, metric, variant) for variant in variants]


def _variant_row(comparison: Comparison, metric: AnyMetric, variant: Variant) -> dict[str, Cell]:
    pair = (metric.twin, metric) if metric.averaged else (metric, metric.twin)  # raw, then averaged weights
    bins = zip(bin_names(comparison, metric), comparison.bins(metric), strict=True)
    return {
        "variant": _label(comparison, variant),
        "seeds": _seeds(variant.runs),
        **{one.name: _mean_and_deviation(variant, one) for one in pair if one is not None},
        "since start": _percent(variant.values(lambda run: run.change(metric)).mean()),
        **{name: _number(variant.mean(bin_metric), 3) for name, bin_metric in bins},
        "images/s": _number(variant.values(lambda run: run.images_per_second).mean(), 3),
        "GB": _number(variant.values(lambda run: run.peak_memory_gb).max(), 3),
        "hours": _number(variant.values(lambda run: run.hours).mean(), 2),
    }


def difference_rows(comparison: Comparison, metric: AnyMetric) -> list[dict[str, Cell]]:
    """One row for each variant that is tested against the baseline, best first."""
    verdicts = comparison.verdicts(metric)
    largest = max((abs(snr_bin.estimate) for verdict in verdicts for snr_bin in verdict.bins), default=0) or 1
    rows = []
    for verdict in verdicts:
        total, p = verdict.total, verdict.p
        row = {
            "variant": Cell(verdict.variant.label),
            "seeds": Cell(str(verdict.seeds), verdict.seeds),
            "difference": Cell(difference_text(total, metric), total.estimate),
            "p": Cell("<0.001" if p < 0.001 else f"{p:.3f}", p),
            "verdict": Cell(verdict_word(verdict), style=verdict.outcome),
        }
        for name, snr_bin, outcome in zip(
            bin_names(comparison, metric), verdict.bins, verdict.bin_outcomes, strict=True
        ):
            shade = None if outcome == "same" else round(abs(snr_bin.estimate) / largest, 3)
            row[name] = Cell(percent(snr_bin.estimate).removesuffix(" %"), snr_bin.estimate, outcome, shade)
        rows.append(row)
    return rows


def run_rows(comparison: Comparison, metric: AnyMetric) -> list[dict[str, Cell]]:
    """One row for each run in the folders; those that are not compared come last."""
    left_out = comparison.left_out
    return [
        {
            "run": Cell(run.name),
            "variant": Cell(comparison.factors.label(run) if run.config else "–"),
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
    """results.csv and results.parquet: one row for each run, with its factors and the last value of every metric.

    In results.csv, text that a spreadsheet would compute as a formula has an apostrophe before it.
    """
    rows = [_record(comparison, run) for run in comparison.results]
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    arrays = {printable(name): _array(values) for name, values in columns.items()}
    with replacing(folder / "results.parquet") as file:
        pq.write_table(pa.table(arrays), file)
    table = pa.table({spreadsheet_cell(name): _for_spreadsheets(array) for name, array in arrays.items()})
    with replacing(folder / "results.csv") as file:
        pa.csv.write_csv(table, file)


def _record(comparison: Comparison, run: Result) -> dict[str, Any]:
    return {
        "run": run.name,
        "setting": comparison.factors.label(run) if run.config else None,  # the variant; scripts may read the old name
        "seed": run.seed,
        "state": run.state,
        "compared": run not in comparison.left_out,
        "not_compared": comparison.left_out.get(run),
        "step": run.step,
        "hours": None if np.isnan(run.hours) else run.hours,
        **{key: run.config_value(key) for key in (*comparison.factors.by, *comparison.factors.paired)},
        **{key: value for key, value in run.latest.items() if key != "step"},
    }


def _array(values: list[Any]) -> pa.Array:
    """A column of one type: text if the values have several."""
    types = {float if isinstance(value, int) and not isinstance(value, bool) else type(value) for value in values}
    if len(types - {type(None)}) > 1 or types & {list, dict}:
        return _texts(values)
    try:
        return pa.array(list(map(_printable, values)))
    except (pa.ArrowException, OverflowError):  # integers of more than 64 bits, or another type of YAML's
        return _texts(values)


def _texts(values: list[Any]) -> pa.Array:
    return pa.array([None if value is None else as_text(value) for value in values])


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def _for_spreadsheets(array: pa.Array) -> pa.Array:
    if not pa.types.is_string(array.type):
        return array
    return pa.array([None if text is None else spreadsheet_cell(text) for text in array.to_pylist()])


def _label(comparison: Comparison, variant: Variant) -> Cell:
    is_baseline = variant is comparison.baseline and len(comparison.variants) > 1
    return Cell(variant.label, style="baseline" if is_baseline else "")


def _seeds(runs: dict[tuple, Result]) -> Cell:
    seeds = {run.seed for run in runs.values()}
    return Cell(str(len(seeds)) if len(seeds) == len(runs) else f"{len(seeds)} ({len(runs)} runs)", len(seeds))


def _mean_and_deviation(variant: Variant, metric: AnyMetric) -> Cell:
    """Mean and standard deviation over the runs; of folds, over seeds."""
    values = variant.estimates(metric)
    mean = float(values.mean())
    if len(values) == 1 or not np.isfinite(mean):
        return _number(mean)
    return Cell(f"{number(mean)} ± {number(values.std(ddof=1), 1)}", mean)


def _number(value: float, digits: int = 4) -> Cell:
    return Cell(number(value, digits), float(value))


def _percent(fraction: float) -> Cell:
    return Cell(percent(fraction), float(fraction)) if np.isfinite(fraction) else Cell("–", float("nan"))
