"""Where a variant is better and where worse: its error at each noise level against the baseline's."""

from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from t2i.comparison.charts import (
    PERCENT,
    PLAIN,
    baseline_in_title,
    create_axes,
    draw_cells,
    draw_legend,
    figure_label,
    label_width,
)
from t2i.comparison.curves import draw_runs, line_styles
from t2i.comparison.verdicts import Comparison, Variant
from t2i.comparison.wording import weights_name
from t2i.evaluation.metrics import Metric, snr_bins

MOST_LINES = 8  # that can be told apart where they cross; more variants are shown as rows of cells


def snr(comparison: Comparison, metric: Metric) -> Figure:
    """The epsilon error relative to the baseline, against the signal-to-noise ratio, with the metric's weights."""
    variants = [variant for variant in comparison.variants if comparison.pairs(variant)]
    draw = _in_lines if len(variants) <= MOST_LINES else _in_rows
    figure = draw(comparison, metric, variants)
    figure.axes[0].set_title(f"error against {baseline_in_title(comparison)}, {weights_name(metric)} (below 0: better)")
    return figure


def _in_lines(comparison: Comparison, metric: Metric, variants: list[Variant]) -> Figure:
    x, is_snr = _noise_levels(comparison)
    labels = [figure_label(variant, comparison) for variant in variants]
    figure, (axes,) = create_axes([8], 3.6, legend=labels)
    for variant, style in line_styles(comparison).items():
        if variant in variants:
            dotted = style | {"marker": ".", "markersize": 5}
            draw_runs(axes, x, _change(comparison, metric, variant), dotted, figure_label(variant, comparison))
    around_edges = [(x[noisier.min()], x[cleaner.max()]) for noisier, cleaner in pairwise(snr_bins(len(x)))]
    if is_snr:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(PLAIN)
        edges = np.exp(np.log(around_edges).mean(1))
    else:
        axes.invert_xaxis()
        edges = np.mean(around_edges, axis=1)
    edges = [axes.get_xlim()[0], *edges, axes.get_xlim()[1]]
    for start, end in list(pairwise(edges))[1::2]:
        axes.axvspan(start, end, color="black", alpha=0.04, linewidth=0)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel(f"{_axis_name(is_snr)}, noise → clean; stripes: SNR bins")
    draw_legend(figure, axes)
    return figure


def _in_rows(comparison: Comparison, metric: Metric, variants: list[Variant]) -> Figure:
    x, is_snr = _noise_levels(comparison)
    labels = [figure_label(variant, comparison) for variant in variants]
    figure, (axes,) = create_axes([8], 0.25 * len(labels), left=0.3 + label_width(labels), right=1.6)
    changes = [_change(comparison, metric, variant).mean(0)[::-1] for variant in variants]
    draw_cells(figure, axes, np.stack(changes))
    axes.set_yticks(range(len(labels)), labels)
    ticks = np.unique(np.linspace(0, len(x) - 1, 8).round().astype(int))
    axes.set_xticks(ticks, [f"{value:.2g}" if value < 100 else f"{value:.0f}" for value in x[::-1][ticks]])
    for edge in np.cumsum([len(timesteps) for timesteps in snr_bins(len(x))])[:-1]:
        axes.axvline(edge - 0.5, color="white", linewidth=2)
    axes.set_xlabel(f"{_axis_name(is_snr)}, noise → clean, in SNR bins")
    return figure


def _axis_name(is_snr: bool) -> str:
    return "signal-to-noise ratio" if is_snr else "timestep"


def _noise_levels(comparison: Comparison) -> tuple[np.ndarray, bool]:
    """The signal-to-noise ratio at each level of the battery, [K], and True; or else the timesteps, and False."""
    battery = comparison.runs[0].info["battery"]
    if "log_snr" in battery:
        return np.exp(np.array(battery["log_snr"], dtype=float)), True
    return np.array(battery.get("snr", battery["timesteps"]), dtype=float), "snr" in battery


def _change(comparison: Comparison, metric: Metric, variant: Variant) -> np.ndarray:
    """The error's relative difference from the baseline's in each pair of runs, [pairs, K]."""
    ours, theirs = (
        np.stack([side.runs[pair].errors[metric.prefix].mean(0) for pair in comparison.pairs(variant)])
        for side in (variant, comparison.baseline)
    )
    return ours / theirs - 1
