"""Where a setting is better and where worse: the error of each timestep against the baseline's."""

from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from t2i.comparison.charts import PERCENT, PLAIN, draw_legend, name, panels, room, shade
from t2i.comparison.curves import lines, looks
from t2i.comparison.verdicts import Comparison, Setting
from t2i.evaluation.metrics import Metric, snr_bins

MOST_LINES = 8  # that can be told apart where they cross; more settings are shown in rows


def snr(comparison: Comparison, metric: Metric) -> Figure:
    """Relative to the baseline, against the signal-to-noise ratio, of the metric's weights."""
    settings = [setting for setting in comparison.settings if comparison.pairs(setting)]
    figure = (_in_lines if len(settings) <= MOST_LINES else _in_rows)(comparison, metric, settings)
    kind = "averaged" if metric.weights else "raw"
    figure.axes[0].set_title(f"error against {comparison.baseline.label}, {kind} weights (below 0: better)")
    return figure


def _in_lines(comparison: Comparison, metric: Metric, settings: list[Setting]) -> Figure:
    x, is_snr = _noise_levels(comparison)
    figure, (axes,) = panels([8], 3.6, legend=[name(setting, comparison) for setting in settings])
    for setting, look in looks(comparison).items():
        if setting in settings:
            dotted = look | {"marker": ".", "markersize": 5}
            lines(axes, x, _change(comparison, metric, setting), dotted, name(setting, comparison))
    between = [(x[a.min()], x[b.max()]) for a, b in pairwise(snr_bins(len(x)))]
    if is_snr:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(PLAIN)
        edges = np.exp(np.log(between).mean(1))
    else:
        axes.invert_xaxis()
        edges = np.mean(between, axis=1)
    edges = [axes.get_xlim()[0], *edges, axes.get_xlim()[1]]
    for start, end in list(pairwise(edges))[1::2]:
        axes.axvspan(start, end, color="black", alpha=0.04, linewidth=0)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel(f"{'signal-to-noise ratio' if is_snr else 'timestep'}, noise → clean; stripes: SNR bins")
    draw_legend(figure, axes)
    return figure


def _in_rows(comparison: Comparison, metric: Metric, settings: list[Setting]) -> Figure:
    x, is_snr = _noise_levels(comparison)
    names = [name(setting, comparison) for setting in settings]
    figure, (axes,) = panels([8], 0.25 * len(names), left=0.3 + room(names), right=1.6)
    shade(figure, axes, np.stack([_change(comparison, metric, setting).mean(0)[::-1] for setting in settings]))
    axes.set_yticks(range(len(names)), names)
    places = np.unique(np.linspace(0, len(x) - 1, 8).round().astype(int))
    axes.set_xticks(places, [f"{value:.2g}" if value < 100 else f"{value:.0f}" for value in x[::-1][places]])
    for edge in np.cumsum([len(places) for places in snr_bins(len(x))])[:-1]:
        axes.axvline(edge - 0.5, color="white", linewidth=2)
    axes.set_xlabel(f"{'signal-to-noise ratio' if is_snr else 'timestep'}, noise → clean, in SNR bins")
    return figure


def _noise_levels(comparison: Comparison) -> tuple[np.ndarray, bool]:
    """Of each timestep of the battery the signal-to-noise ratio, [K], or its number where that was not written down."""
    battery = comparison.runs[0].info["battery"]
    return np.array(battery.get("snr", battery["timesteps"]), dtype=float), "snr" in battery


def _change(comparison: Comparison, metric: Metric, setting: Setting) -> np.ndarray:
    """The error's change against the baseline in each pair of runs, [pairs, K]."""
    ours, theirs = (
        np.stack([each.runs[pair].errors[metric.weights].mean(0) for pair in comparison.pairs(setting)])
        for each in (setting, comparison.baseline)
    )
    return ours / theirs - 1
