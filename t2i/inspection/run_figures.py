"""The curves of one run: a small chart for each thing that is watched while it trains."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from t2i.comparison.charts import PLAIN, SAME, VALUE, create_axes
from t2i.comparison.curves import PALETTE

MOST_POINTS = 400  # of a line; of more, the means of as many parts are drawn
RATE = "learning rate"
Lines = Sequence[Mapping[str, float]]  # of metrics.jsonl


class Chart(NamedTuple):
    """What is drawn in one chart. metrics: as they are logged -> their labels; those that a run lacks are left out."""

    title: str
    metrics: Mapping[str, str]
    help: str


CHARTS = (
    Chart("train/loss", {"train/loss": "weighted"}, "the loss that is minimised: noisy, and no measure of quality"),
    Chart(
        "val/loss",
        {
            "val/loss": "trained weights",
            "val/ema/loss": "averaged weights",
            "val/train_loss": "training images",
            "val/ema/train_loss": "training images, averaged weights",
        },
        "the error on the same images, noise levels and noise each time: comparable between runs",
    ),
    Chart(
        "ref/loss",
        {"ref/loss": "trained weights", "ref/ema/loss": "averaged weights"},
        "the error on images of what the base could do before: what rises is forgotten",
    ),
    Chart(RATE, {"train/lr": "learning rate"}, "of the optimizer, at each step"),
    Chart("gradient norm", {"train/grad_norm": "before clipping"}, "it rises without end if the rate is too high"),
)


def charts(lines: Lines, forked_at: int = 0) -> dict[str, tuple[Figure, str]]:
    """Title -> chart and what it shows, for everything that was logged. forked_at: where the run's own steps begin."""
    scored = sorted({name for line in lines for name in line if name.startswith("images/")})
    scores = [Chart(name, {name: name.removeprefix("images/")}, "of the images that it draws") for name in scored]
    drawn = {}
    for chart in (*CHARTS, *scores):
        series = {label: found for name, label in chart.metrics.items() if len((found := points(lines, name))[0])}
        if series:
            drawn[chart.title] = (_draw(chart.title, series, forked_at), chart.help)
    return drawn


def points(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, without values that are not finite; of very many, means of neighbours."""
    found = [(line["step"], line[name]) for line in lines if name in line and np.isfinite(line[name])]
    steps, values = np.array(found, dtype=np.float64).reshape(-1, 2).T
    if len(steps) <= MOST_POINTS:
        return steps, values
    return _means(steps), _means(values)


def _means(values: np.ndarray) -> np.ndarray:
    return np.array([part.mean() for part in np.array_split(values, MOST_POINTS)])


def _draw(title: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]], forked_at: int) -> Figure:
    labels = list(series) if len(series) > 1 else []
    figure, (axes,) = create_axes([4.2], 2.4, left=0.8, legend=[f"{label} and some more" for label in labels])
    for color, (label, (steps, values)) in zip(PALETTE, series.items(), strict=False):
        marker = "o" if len(steps) < 15 else ""
        axes.plot(steps, values, marker=marker, markersize=4, linewidth=1.5, color=color, label=label)
    everything = np.concatenate([values for _, values in series.values()])
    if title == RATE:
        axes.set_ylim(0, 1.05 * (everything.max() or 1))
        axes.yaxis.set_major_formatter(VALUE)
    elif everything.min() > 0 and everything.max() / everything.min() > 2:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(PLAIN)
        axes.yaxis.set_minor_formatter(NullFormatter())
    if forked_at:
        axes.axvline(forked_at, color=SAME, linewidth=1, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="step", title=title)
    if labels:
        figure.legend(loc="lower center", ncols=2, fontsize=9)
    return figure
