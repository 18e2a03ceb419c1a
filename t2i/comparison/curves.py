"""Validation over time, with a line for each variant."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from t2i.comparison.charts import (
    PERCENT,
    PLAIN,
    SAME,
    SIGNED,
    baseline_in_title,
    create_axes,
    draw_legend,
    figure_label,
)
from t2i.comparison.figures import find_grid
from t2i.comparison.results import Result
from t2i.comparison.verdicts import AnyMetric, Comparison, Variant

TRUNK = "trunk of several runs"
MOST_LINES = 20  # of single runs, for each variant
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#5B4FA2")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))


def line_styles(comparison: Comparison) -> dict[Variant, dict]:
    """Matplotlib's settings for each variant's lines: a colour per row of a grid, dashes per column; baseline black."""
    numbers = {variant: (i, i // len(PALETTE)) for i, variant in enumerate(comparison.variants)}
    if grid := find_grid(comparison):
        numbers = {variant: cell for cell, variant in grid.variants.items()}
    styles = {
        variant: {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[j % len(DASHES)]}
        for variant, (i, j) in numbers.items()
    }
    styles[comparison.baseline] = {"color": "black", "linestyle": "-"}
    return styles


def curves(comparison: Comparison, metric: AnyMetric) -> Figure:
    """Validation against steps, relative to the baseline at the same step, and against hours if they were logged."""
    longest = max((run.hours for run in comparison.runs if np.isfinite(run.hours)), default=0.0)
    num_axes = 1 + (len(comparison.variants) > 1) + (longest > 0)
    labels = [figure_label(variant, comparison) for variant in comparison.variants]
    figure, axes = create_axes([3.6] * num_axes, 3.2, legend=[*labels, "not compared", TRUNK])
    over_steps, *others = axes
    _draw_over_steps(over_steps, comparison, metric)
    if len(comparison.variants) > 1:
        _draw_relative(others[0], comparison, metric)
    if longest > 0:
        _draw_over_time(others[-1], comparison, metric, in_minutes=longest < 2)
    for panel in axes:
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=panel.get_xlabel() == "step"))
    draw_legend(figure, over_steps)
    return figure


def draw_runs(axes: Axes, x: np.ndarray, values: np.ndarray, style: dict, label: str | None = None) -> None:
    """The mean over the runs, and a thin line for each run. values: [R, len(x)]."""
    axes.plot(x, values.mean(0), label=label, linewidth=1.8, **style)
    if len(values) > 1:
        runs = [np.column_stack([x, run]) for run in values[:MOST_LINES]]
        axes.add_collection(LineCollection(runs, color=style["color"], linewidth=0.6, alpha=0.45))


def _draw_over_steps(axes: Axes, comparison: Comparison, metric: AnyMetric) -> None:
    for variant, style in line_styles(comparison).items():
        steps, _, values = _common_points([own_curve(run, metric) for run in variant.runs.values()])
        draw_runs(axes, steps, values, style, figure_label(variant, comparison))
    for trunk in _trunks(comparison, metric):
        steps, _, values = np.array(trunk).T
        axes.plot(steps, values, color=SAME, linewidth=1.8, label=TRUNK)
    for run in comparison.left_out:
        if curve := own_curve(run, metric):
            steps, _, values = np.array(curve).T
            (line,) = axes.plot(steps, values, "-x", color=SAME, linewidth=0.8, markersize=5, markevery=[-1])
            line.set_label("not compared")
    axes.set(xlabel="step", title=metric.name)
    _log_if_wide(axes)


def _draw_relative(axes: Axes, comparison: Comparison, metric: AnyMetric) -> None:
    for variant, style in line_styles(comparison).items():
        pairs = comparison.pairs(variant)
        if variant is comparison.baseline:
            axes.axhline(0, **style)
        elif pairs:
            both = [own_curve(variant.runs[pair], metric) for pair in pairs]
            both += [comparison.baseline.runs[pair].curve(metric) for pair in pairs]
            steps, _, values = _common_points(both)
            draw_runs(axes, steps, metric.ratio(values[: len(pairs)], values[len(pairs) :]), style)
    axes.set(xlabel="step", title=f"against {baseline_in_title(comparison)} at the same step")
    axes.yaxis.set_major_formatter(PERCENT if metric.relative else SIGNED)


def _draw_over_time(axes: Axes, comparison: Comparison, metric: AnyMetric, in_minutes: bool) -> None:
    for variant, style in line_styles(comparison).items():
        _, hours, values = _common_points([own_curve(run, metric) for run in variant.runs.values()])
        draw_runs(axes, hours.mean(0) * (60 if in_minutes else 1), values, style)
    axes.set(xlabel="minutes" if in_minutes else "hours", title=metric.name)
    _log_if_wide(axes)


def own_curve(run: Result, metric: AnyMetric) -> list[tuple[int, float, float]]:
    """The curve of a run without what it shares with the one that it goes on from, but for the last point of that."""
    points = run.curve(metric)
    first = max((step for step, *_ in points if step <= run.forked_at), default=0)
    return [point for point in points if point[0] >= first]


def _trunks(comparison: Comparison, metric: AnyMetric) -> list[list[tuple[int, float, float]]]:
    """The curves of the runs that others went on from, each once, but for those that are drawn themselves."""
    drawn = {run.folder for run in comparison.results if run.curve(metric)}
    longest: dict[Path, tuple[int, Result]] = {}
    for run in comparison.results:
        for folder, step in run.ancestors:
            if folder not in drawn and step > longest.get(folder, (-1, run))[0]:
                longest[folder] = step, run
    curves = []
    for folder, (step, run) in longest.items():
        chain = [*run.ancestors, (None, 0)]
        began = next(after for (other, _), (_, after) in pairwise(chain) if other == folder)
        points = [point for point in run.curve(metric) if point[0] <= step]
        first = max((point[0] for point in points if point[0] <= began), default=0)
        curves.append([point for point in points if point[0] >= first])
    return [curve for curve in curves if curve]


def _common_points(curves: list[list[tuple[int, float, float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The steps that all curves have, [S]; each curve's hours and values there, [R, S]."""
    by_step = [{step: (hours, value) for step, hours, value in curve} for curve in curves]
    steps = sorted(set.intersection(*map(set, by_step)))
    points = np.array([[curve[step] for step in steps] for curve in by_step]).reshape(len(by_step), len(steps), 2)
    hours, values = np.moveaxis(points, -1, 0)
    return np.array(steps), hours, values


def _log_if_wide(axes: Axes) -> None:
    """A logarithmic axis with readable labels if the values differ by more than a factor of two."""
    values = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    if values.size and values.min() > 0 and values.max() / values.min() > 2:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(PLAIN)
        axes.yaxis.set_minor_formatter(NullFormatter())
