"""The figures that show one number for each variant."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from t2i.comparison.charts import (
    COLORS,
    PERCENT,
    SAME,
    SIGNED,
    VALUE,
    baseline_in_title,
    create_axes,
    draw_cells,
    figure_label,
    label_width,
    shorten,
)
from t2i.comparison.factors import as_text
from t2i.comparison.results import Result
from t2i.comparison.verdicts import AnyMetric, Comparison, Variant
from t2i.comparison.wording import difference_text, number, percent

MOST_ROWS, MOST_COLUMNS = 40, 20  # of a heat map that can be read
FULL_ENOUGH = 0.6  # fraction of a grid's cells that must hold a variant


@dataclass(frozen=True)
class Grid:
    """Variants in rows and columns."""

    column_key: str
    rows: list[str]
    columns: list[str]
    variants: dict[tuple[int, int], Variant]  # by row and column

    @property
    def fullness(self) -> float:
        """The fraction of the cells that hold a variant."""
        return len(self.variants) / len(self.rows) / len(self.columns)


def find_grid(comparison: Comparison) -> Grid | None:
    """The fullest grid that has one key's values as columns and all other keys' values as rows.

    Of equally full grids, that of the last key. None if no key makes a rectangle that is full enough.
    """
    grids = [_grid(comparison, key) for key in comparison.factors.by]
    grids = [grid for grid in grids if len(grid.rows) > 1 and len(grid.columns) > 1]
    fullest = max(reversed(grids), key=lambda grid: grid.fullness, default=None)
    return fullest if fullest and fullest.fullness > FULL_ENOUGH else None


def _grid(comparison: Comparison, column_key: str) -> Grid:
    factors, runs = comparison.factors, _first_runs(comparison)
    column = replace(factors, by=(column_key,))
    row = replace(factors, by=tuple(key for key in factors.by if key != column_key))
    columns = list(dict.fromkeys(as_text(run.config_value(column_key)) for run in sorted(runs, key=column.sort_key)))
    rows = list(dict.fromkeys(row.label(run) for run in sorted(runs, key=row.sort_key)))
    cells = [(rows.index(row.label(run)), columns.index(as_text(run.config_value(column_key)))) for run in runs]
    return Grid(column_key, rows, columns, dict(zip(cells, comparison.variants, strict=True)))


def overview(comparison: Comparison, metric: AnyMetric) -> Figure:
    """The metric of every variant: as a heat map over a grid, against the values of one number, or in rows."""
    whole = comparison.whole or comparison
    if (grid := find_grid(whole)) and len(grid.rows) <= MOST_ROWS and len(grid.columns) <= MOST_COLUMNS:
        return _heat_map(whole, metric, grid)
    values = [run.config_value(key) for run in _first_runs(comparison) for key in comparison.factors.by]
    if len(comparison.factors.by) == 1 and len(values) > 2 and all(map(_is_number, values)):
        return _against_values(comparison, metric, values)
    return _in_rows(comparison, metric)


def _heat_map(comparison: Comparison, metric: AnyMetric, grid: Grid) -> Figure:
    verdicts = {verdict.variant: verdict for verdict in comparison.verdicts(metric)}
    change = np.full((len(grid.rows), len(grid.columns)), np.nan)
    rows, columns = list(map(shorten, grid.rows)), list(map(shorten, grid.columns))
    width = max(1.2, label_width(columns) + 0.2) * len(columns)
    figure, (axes,) = create_axes([width], 0.6 * len(rows), left=0.3 + label_width(rows), right=1.6)
    for (row, column), variant in grid.variants.items():
        text, weight = "not tested", "normal"
        if variant is comparison.baseline:
            change[row, column], text = 0.0, "baseline"
            axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, linewidth=1))
        elif variant in verdicts:
            estimate, same = verdicts[variant].total.estimate, verdicts[variant].outcome == "same"
            text = percent(estimate) if metric.relative else f"{estimate:+.3g}".replace("-", "−")
            change[row, column], weight = (0.0, "normal") if same else (estimate, "bold")
        text = f"{number(variant.mean(metric))}\n{text}"
        axes.text(column, row, text, ha="center", va="center", fontweight=weight, fontsize=9)
    draw_cells(figure, axes, change, metric.sign, PERCENT if metric.relative else SIGNED)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=grid.column_key, title=f"{metric.name} (coloured and bold: larger than the noise)")
    return figure


def _against_values(comparison: Comparison, metric: AnyMetric, values: list[float]) -> Figure:
    figure, (axes,) = create_axes([6], 3.6)
    if min(values) > 0 and max(values) / min(values) >= 8:
        axes.set_xscale("log")
    axes.plot(values, [variant.mean(metric) for variant in comparison.variants], color=SAME, linewidth=1, zorder=1)
    positions = dict(zip(comparison.variants, values, strict=True))
    _draw_points(axes, comparison, metric, positions, upright=True)
    axes.axhline(comparison.baseline.mean(metric), color="black", linewidth=0.8, linestyle="--", zorder=0)
    axes.xaxis.set(major_locator=FixedLocator(values), minor_locator=NullLocator(), major_formatter=VALUE)
    axes.set(xlabel=comparison.factors.by[0])
    return figure


def _in_rows(comparison: Comparison, metric: AnyMetric) -> Figure:
    variants = sorted(comparison.variants, key=lambda variant: -metric.sign * variant.mean(metric))
    labels = [figure_label(variant, comparison) for variant in variants]
    figure, (axes,) = create_axes([6], 0.3 * len(variants) + 0.2, left=0.3 + label_width(labels))
    _draw_points(axes, comparison, metric, {variant: float(i) for i, variant in enumerate(variants)}, upright=False)
    axes.axvline(comparison.baseline.mean(metric), color="black", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_yticks(range(len(variants)), labels)
    axes.set_ylim(-0.6, len(variants) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure


def _draw_points(
    axes: Axes, comparison: Comparison, metric: AnyMetric, positions: dict[Variant, float], upright: bool
) -> None:
    """The mean and every run of each variant, and the interval of its difference from the baseline.

    positions: of the variants on the axis that does not show the metric; upright: whether that is the x axis.
    """
    verdicts = {verdict.variant: verdict for verdict in comparison.verdicts(metric)}
    for variant, position in positions.items():
        verdict, mean = verdicts.get(variant), variant.mean(metric)
        color = COLORS[verdict.outcome] if verdict else "black"
        marks = [(variant.values(lambda run: run.value(metric)), "o", 3), (np.array([mean]), "D", 7)]
        if verdict:
            back = 1 / (1 + verdict.total.estimate) - 1 if metric.relative else -verdict.total.estimate
            center = metric.moved(mean, back)  # the baseline, as the pairs see it
            marks.append((metric.moved(center, [verdict.total.low, verdict.total.high]), "-", 0))
        for values, marker, size in marks:
            across = np.full(len(values), position)
            axes.plot(*((across, values) if upright else (values, across)), marker, color=color, markersize=size)
    axes.set_title(f"{metric.name}: means, runs, and 95 % intervals of the difference")


def differences(comparison: Comparison, metric: AnyMetric) -> Figure:
    """The difference of each variant from the baseline with its interval, best at the top."""
    verdicts = comparison.verdicts(metric)[::-1]
    labels = [figure_label(verdict.variant, comparison) for verdict in verdicts]
    figure, (axes,) = create_axes([4.4], 0.3 * len(verdicts) + 0.2, left=0.3 + label_width(labels), right=2.0)
    rows, totals = range(len(verdicts)), [verdict.total for verdict in verdicts]
    colors = [COLORS[verdict.outcome] for verdict in verdicts]
    faces = ["white" if verdict.outcome == "same" else COLORS[verdict.outcome] for verdict in verdicts]
    axes.hlines(rows, [total.low for total in totals], [total.high for total in totals], colors, linewidth=2)
    axes.scatter([total.estimate for total in totals], rows, 45, faces, edgecolors=colors, linewidths=1.2, zorder=3)
    for row, total, color in zip(rows, totals, colors, strict=True):
        text = difference_text(total, metric)
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=color)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(rows, labels)
    axes.set_ylim(-0.6, len(verdicts) - 0.4)
    axes.xaxis.set(major_formatter=PERCENT if metric.relative else SIGNED, major_locator=MaxNLocator(6))
    side = "below" if metric.sign == 1 else "above"
    axes.set_xlabel(f"difference, 95 % interval ({side} 0: better; hollow: within noise)")
    axes.set_title(f"{metric.name} against {baseline_in_title(comparison)}")
    return figure


def _first_runs(comparison: Comparison) -> list[Result]:
    """One run of each variant."""
    return [next(iter(variant.runs.values())) for variant in comparison.variants]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
