"""Validation over time, with a line for each setting."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from t2i.comparison.charts import PERCENT, PLAIN, SAME, draw_legend, name, panels
from t2i.comparison.figures import find_grid
from t2i.comparison.verdicts import Comparison, Setting
from t2i.evaluation.metrics import Metric

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#5B4FA2")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))


def looks(comparison: Comparison) -> dict[Setting, dict]:
    """How the lines of each setting are drawn: rows of a grid by colour, its columns by dashes; the baseline black."""
    places = {setting: (i, i // len(PALETTE)) for i, setting in enumerate(comparison.settings)}
    if grid := find_grid(comparison):
        places = {setting: place for place, setting in grid.settings.items()}
    looks = {
        setting: {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[j % len(DASHES)]}
        for setting, (i, j) in places.items()
    }
    looks[comparison.baseline] = {"color": "black", "linestyle": "-"}
    return looks


def curves(comparison: Comparison, metric: Metric) -> Figure:
    """Validation against steps, relative to the baseline at the same step, and against hours where they were logged."""
    longest = max((run.hours for run in comparison.runs if np.isfinite(run.hours)), default=0.0)
    num_panels = 1 + (len(comparison.settings) > 1) + (longest > 0)
    names = [name(setting, comparison) for setting in comparison.settings]
    figure, axes = panels([3.6] * num_panels, 3.2, legend=[*names, "not compared"])
    over_steps, *others = axes
    over_steps.set(xlabel="step", title=metric.name)
    for setting, look in looks(comparison).items():
        steps, _, values = _shared([run.curve(metric) for run in setting.runs.values()])
        lines(over_steps, steps, values, look, name(setting, comparison))
    for run in comparison.left_out:
        if curve := run.curve(metric):
            steps, _, values = np.array(curve).T
            (line,) = over_steps.plot(steps, values, "-x", color=SAME, linewidth=0.8, markersize=5, markevery=[-1])
            line.set_label("not compared")
    _log_if_wide(over_steps)
    if len(comparison.settings) > 1:
        _draw_relative(others[0], comparison, metric)
    if longest > 0:
        _draw_over_time(others[-1], comparison, metric, in_minutes=longest < 2)
    for panel in axes:
        panel.xaxis.set_major_locator(MaxNLocator(6))
    draw_legend(figure, over_steps)
    return figure


def _draw_relative(axes: Axes, comparison: Comparison, metric: Metric) -> None:
    for setting, look in looks(comparison).items():
        pairs = comparison.pairs(setting)
        if setting is comparison.baseline:
            axes.axhline(0, **look)
        elif pairs:
            both = [each.runs[pair].curve(metric) for each in (setting, comparison.baseline) for pair in pairs]
            steps, _, values = _shared(both)
            lines(axes, steps, values[: len(pairs)] / values[len(pairs) :] - 1, look)
    axes.set(xlabel="step", title=f"against {comparison.baseline.label} at the same step")
    axes.yaxis.set_major_formatter(PERCENT)


def _draw_over_time(axes: Axes, comparison: Comparison, metric: Metric, in_minutes: bool) -> None:
    for setting, look in looks(comparison).items():
        _, hours, values = _shared([run.curve(metric) for run in setting.runs.values()])
        lines(axes, hours.mean(0) * (60 if in_minutes else 1), values, look)
    axes.set(xlabel="minutes" if in_minutes else "hours", title=metric.name)
    _log_if_wide(axes)


def _shared(curves: list[list[tuple[int, float, float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The steps that all have, [S]; and there the hours and the values of each, [R, S]."""
    at = [{step: (hours, value) for step, hours, value in curve} for curve in curves]
    steps = sorted(set.intersection(*map(set, at)))
    points = np.array([[each[step] for step in steps] for each in at]).reshape(len(at), len(steps), 2)
    hours, values = np.moveaxis(points, -1, 0)
    return np.array(steps), hours, values


def lines(axes: Axes, x: np.ndarray, values: np.ndarray, look: dict, label: str | None = None) -> None:
    """The mean over runs, and a thin line for each of them."""
    axes.plot(x, values.mean(0), label=label, linewidth=1.8, **look)
    if len(values) > 1:
        runs = [np.column_stack([x, each]) for each in values]
        axes.add_collection(LineCollection(runs, color=look["color"], linewidth=0.6, alpha=0.45))


def _log_if_wide(axes: Axes) -> None:
    """A logarithmic axis with readable labels where the values differ by more than a factor of two."""
    values = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    if values.min() > 0 and values.max() / values.min() > 2:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(PLAIN)
        axes.yaxis.set_minor_formatter(NullFormatter())
