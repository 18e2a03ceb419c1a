"""Validation over time, with a line for each variant."""

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
from t2i.comparison.verdicts import AnyMetric, Comparison, Variant

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
    figure, axes = create_axes([3.6] * num_axes, 3.2, legend=[*labels, "not compared"])
    over_steps, *others = axes
    _draw_over_steps(over_steps, comparison, metric)
    if len(comparison.variants) > 1:
        _draw_relative(others[0], comparison, metric)
    if longest > 0:
        _draw_over_time(others[-1], comparison, metric, in_minutes=longest < 2)
    for panel in axes:
        panel.xaxis.set_major_locator(MaxNLocator(6))
    draw_legend(figure, over_steps)
    return figure


def draw_runs(axes: Axes, x: np.ndarray, values: np.ndarray, style: dict, label: str | None = None) -> None:
    """The mean over the runs, and a thin line for each run. values: [R, len(x)]."""
    axes.plot(x, values.mean(0), label=label, linewidth=1.8, **style)
    if len(values) > 1:
        runs = [np.column_stack([x, run]) for run in values]
        axes.add_collection(LineCollection(runs, color=style["color"], linewidth=0.6, alpha=0.45))


def _draw_over_steps(axes: Axes, comparison: Comparison, metric: AnyMetric) -> None:
    for variant, style in line_styles(comparison).items():
        steps, _, values = _common_points([run.curve(metric) for run in variant.runs.values()])
        draw_runs(axes, steps, values, style, figure_label(variant, comparison))
    for run in comparison.left_out:
        if curve := run.curve(metric):
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
            both = [side.runs[pair].curve(metric) for side in (variant, comparison.baseline) for pair in pairs]
            steps, _, values = _common_points(both)
            draw_runs(axes, steps, metric.ratio(values[: len(pairs)], values[len(pairs) :]), style)
    axes.set(xlabel="step", title=f"against {baseline_in_title(comparison)} at the same step")
    axes.yaxis.set_major_formatter(PERCENT if metric.relative else SIGNED)


def _draw_over_time(axes: Axes, comparison: Comparison, metric: AnyMetric, in_minutes: bool) -> None:
    for variant, style in line_styles(comparison).items():
        _, hours, values = _common_points([run.curve(metric) for run in variant.runs.values()])
        draw_runs(axes, hours.mean(0) * (60 if in_minutes else 1), values, style)
    axes.set(xlabel="minutes" if in_minutes else "hours", title=metric.name)
    _log_if_wide(axes)


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
    if values.min() > 0 and values.max() / values.min() > 2:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(PLAIN)
        axes.yaxis.set_minor_formatter(NullFormatter())
