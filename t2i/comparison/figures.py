"""The figures that show one number for each setting."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from t2i.comparison.charts import COLORS, PERCENT, SAME, VALUE, name, panels, room, shade, shorten
from t2i.comparison.factors import as_text
from t2i.comparison.results import Result
from t2i.comparison.verdicts import Comparison, Setting, interval, number, percent
from t2i.evaluation.metrics import Metric


@dataclass(frozen=True)
class Grid:
    """Settings in rows and columns."""

    column_key: str
    rows: list[str]
    columns: list[str]
    settings: dict[tuple[int, int], Setting]


def find_grid(comparison: Comparison) -> Grid | None:
    """The key whose values make the fullest columns, all other keys in the rows; None if they make no rectangle."""
    keys, grids, runs = comparison.keys, [], _first_runs(comparison)
    for key in keys.by:
        others = replace(keys, by=tuple(other for other in keys.by if other != key))
        columns = list(
            dict.fromkeys(as_text(run.setting(key)) for run in sorted(runs, key=replace(keys, by=(key,)).order))
        )
        rows = list(dict.fromkeys(others.label(run) for run in sorted(runs, key=others.order)))
        places = [(rows.index(others.label(run)), columns.index(as_text(run.setting(key)))) for run in runs]
        if min(len(rows), len(columns)) > 1:
            grids.append(Grid(key, rows, columns, dict(zip(places, comparison.settings, strict=True))))
    fullness = [len(grid.settings) / len(grid.rows) / len(grid.columns) for grid in grids]
    best = max(fullness, default=0)
    return grids[len(grids) - 1 - fullness[::-1].index(best)] if best > 0.6 else None


def overview(comparison: Comparison, metric: Metric) -> Figure:
    """The metric of every setting: a heat map over two keys, or points against the values of one, or in rows."""
    if grid := find_grid(comparison):
        return _heat_map(comparison, metric, grid)
    values = [run.setting(key) for run in _first_runs(comparison) for key in comparison.keys.by]
    if len(comparison.keys.by) == 1 and len(values) > 2 and all(map(_is_number, values)):
        return _against_values(comparison, metric, values)
    return _in_rows(comparison, metric)


def _heat_map(comparison: Comparison, metric: Metric, grid: Grid) -> Figure:
    verdicts = {verdict.setting: verdict for verdict in comparison.verdicts(metric)}
    change = np.full((len(grid.rows), len(grid.columns)), np.nan)
    rows, columns = list(map(shorten, grid.rows)), list(map(shorten, grid.columns))
    width = max(1.2, room(columns) + 0.2) * len(columns)
    figure, (axes,) = panels([width], 0.6 * len(rows), left=0.3 + room(rows), right=1.6)
    for (row, column), setting in grid.settings.items():
        text, weight = "not tested", "normal"
        if setting is comparison.baseline:
            change[row, column], text = 0.0, "baseline"
            axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, linewidth=1))
        elif setting in verdicts:
            change[row, column] = verdicts[setting].total.estimate
            text = percent(change[row, column])
            weight = "normal" if verdicts[setting].outcome == "same" else "bold"
        text = f"{number(_mean(setting, metric))}\n{text}"
        axes.text(column, row, text, ha="center", va="center", fontweight=weight, fontsize=9)
    shade(figure, axes, change)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=grid.column_key, title=f"{metric.name} (bold: beyond the noise)")
    return figure


def _against_values(comparison: Comparison, metric: Metric, values: list[float]) -> Figure:
    figure, (axes,) = panels([6], 3.6)
    if min(values) > 0 and max(values) / min(values) >= 8:
        axes.set_xscale("log")
    axes.plot(values, [_mean(setting, metric) for setting in comparison.settings], color=SAME, linewidth=1, zorder=1)
    _points(axes, comparison, metric, dict(zip(comparison.settings, values, strict=True)), upright=True)
    axes.axhline(_mean(comparison.baseline, metric), color="black", linewidth=0.8, linestyle="--", zorder=0)
    axes.xaxis.set(major_locator=FixedLocator(values), minor_locator=NullLocator(), major_formatter=VALUE)
    axes.set(xlabel=comparison.keys.by[0])
    return figure


def _in_rows(comparison: Comparison, metric: Metric) -> Figure:
    settings = sorted(comparison.settings, key=lambda setting: -_mean(setting, metric))
    names = [name(setting, comparison) for setting in settings]
    figure, (axes,) = panels([6], 0.3 * len(settings) + 0.2, left=0.3 + room(names))
    _points(axes, comparison, metric, {setting: place for place, setting in enumerate(settings)}, upright=False)
    axes.axvline(_mean(comparison.baseline, metric), color="black", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_yticks(range(len(settings)), names)
    axes.set_ylim(-0.6, len(settings) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure


def _points(axes: Axes, comparison: Comparison, metric: Metric, places: dict[Setting, float], upright: bool) -> None:
    """The mean and every run of each setting, and the interval of its difference from the baseline."""
    verdicts = {verdict.setting: verdict for verdict in comparison.verdicts(metric)}
    for setting, place in places.items():
        verdict = verdicts.get(setting)
        color = COLORS[verdict.outcome] if verdict else "black"
        parts = [(setting.values(lambda run: run.value(metric)), "o", 3), (np.array([_mean(setting, metric)]), "D", 7)]
        if verdict:
            total = verdict.total
            parts.append(
                (_mean(setting, metric) * (1 + np.array([total.low, total.high])) / (1 + total.estimate), "-", 0)
            )
        for values, marker, size in parts:
            across = np.full(len(values), place)
            axes.plot(*((across, values) if upright else (values, across)), marker, color=color, markersize=size)
    axes.set_title(f"{metric.name}: means, runs, and 95 % intervals of the difference")


def differences(comparison: Comparison, metric: Metric) -> Figure:
    """The difference of each setting from the baseline with its interval, best on top."""
    verdicts = comparison.verdicts(metric)[::-1]
    names = [name(verdict.setting, comparison) for verdict in verdicts]
    figure, (axes,) = panels([4.4], 0.3 * len(verdicts) + 0.2, left=0.3 + room(names), right=2.0)
    places, totals = range(len(verdicts)), [verdict.total for verdict in verdicts]
    colors = [COLORS[verdict.outcome] for verdict in verdicts]
    faces = ["white" if verdict.outcome == "same" else COLORS[verdict.outcome] for verdict in verdicts]
    axes.hlines(places, [total.low for total in totals], [total.high for total in totals], colors, linewidth=2)
    axes.scatter([total.estimate for total in totals], places, 45, faces, edgecolors=colors, linewidths=1.2, zorder=3)
    for place, total, color in zip(places, totals, colors, strict=True):
        text = f"{percent(total.estimate)} {interval(total)}"
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=color)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, names)
    axes.set_ylim(-0.6, len(verdicts) - 0.4)
    axes.xaxis.set(major_formatter=PERCENT, major_locator=MaxNLocator(6))
    axes.set_xlabel("difference, 95 % interval (below 0: better; hollow: within noise)")
    axes.set_title(f"{metric.name} against {comparison.baseline.label}")
    return figure


def _mean(setting: Setting, metric: Metric) -> float:
    return float(setting.values(lambda run: run.value(metric)).mean())


def _first_runs(comparison: Comparison) -> list[Result]:
    return [next(iter(setting.runs.values())) for setting in comparison.settings]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
