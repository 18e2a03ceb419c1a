"""What each variant gained and what it forgot since it began, and which variants no other beats in both."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from t2i.comparison import folds
from t2i.comparison.charts import PERCENT, create_axes, draw_legend, figure_label
from t2i.comparison.curves import DASHES, line_styles
from t2i.comparison.results import Result
from t2i.comparison.significance import LEVEL, Difference, difference, holm
from t2i.comparison.verdicts import Comparison, Variant
from t2i.comparison.wording import interval, percent

LOSSES = {False: ("", "ref/"), True: ("ema/", "ref/ema/")}  # averaged weights or not -> held-out and reference errors

MARKERS = "os^Dv"  # for the dashes of the curves: in a grid, variants of one row share a colour


@dataclass(frozen=True)
class Point:
    """A variant's changes since step 0, paired image by image: of val/loss (below 0 is a gain) and of ref/loss."""

    variant: Variant
    held_out: Difference
    reference: Difference

    def is_behind(self, other: "Point") -> bool:
        """Whether the other's estimates are both better."""
        ours, theirs = ((point.held_out.estimate, point.reference.estimate) for point in (self, other))
        return theirs != ours and theirs[0] <= ours[0] and theirs[1] <= ours[1]


def points(comparison: Comparison, averaged: bool) -> list[Point]:
    """One for each variant; none if a run lacks the errors, at its end or at step 0."""
    prefixes = LOSSES[averaged]
    if not {prefixes[0], prefixes[1]} <= {metric.prefix for metric in comparison.metrics}:
        return []
    starts = {run: replace(run, step=0) for run in comparison.runs if 0 in run.validations}
    if len(starts) < len(comparison.runs) or not all(_is_complete(run, starts[run], prefixes) for run in starts):
        return []

    def change(variant: Variant, prefix: str) -> Difference:
        pairs = folds.complete(variant.runs, list(variant.runs))
        end, of = folds.stacked(variant.runs, pairs, prefix)
        start, _ = folds.stacked({pair: starts[variant.runs[pair]] for pair in pairs}, pairs, prefix)
        return difference(end, start, folds=of)

    return [Point(variant, *(change(variant, prefix) for prefix in prefixes)) for variant in comparison.variants]


def _is_complete(run: Result, start: Result, prefixes: tuple[str, str]) -> bool:
    """Whether the errors at step 0 can be paired with those at the end."""
    if start.damage or not set(prefixes) <= start.errors.keys():
        return False
    return all(start.errors[prefix].shape == run.errors[prefix].shape for prefix in prefixes)


def tradeoff(comparison: Comparison, found: list[Point]) -> Figure:
    """Gain against forgetting: a cross of 95 % intervals for each variant; a ring where no other beats it in both."""
    labels = [figure_label(point.variant, comparison) for point in found]
    figure, (axes,) = create_axes([6], 4, legend=[*labels, "no other is better in both"])
    styles = line_styles(comparison)
    for point, label in zip(found, labels, strict=True):
        color, marker = styles[point.variant]["color"], MARKERS[DASHES.index(styles[point.variant]["linestyle"])]
        x, y = point.reference, point.held_out
        axes.plot([x.low, x.high], [-y.estimate] * 2, color=color, linewidth=1.4)
        axes.plot([x.estimate] * 2, [-y.low, -y.high], color=color, linewidth=1.4)
        axes.plot(x.estimate, -y.estimate, marker, color=color, markersize=6, linestyle="none", label=label)
    front = [point for point in found if not any(point.is_behind(other) for other in found)]
    best = np.array([(point.reference.estimate, -point.held_out.estimate) for point in front]).T
    axes.plot(*best, "o", markersize=14, fillstyle="none", color="black", label="no other is better in both")
    _finish(axes)
    draw_legend(figure, axes)
    return figure


def _finish(axes: Axes) -> None:
    for (low, high), draw_line in ((axes.get_xlim(), axes.axvline), (axes.get_ylim(), axes.axhline)):
        if low < 0 < high:
            draw_line(0, color="black", linewidth=0.8, zorder=0)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set(xlabel="forgotten: ref/loss since step 0", ylabel="gained: val/loss below step 0")
    axes.set_title("Gain against forgetting, 95 % intervals (best at the top left)")


def judgements(comparison: Comparison, found: list[Point], averaged: bool) -> list[str]:
    """Which variants no other beats in both; and of the others, whether that is more than noise.

    A variant is beaten if another's paired differences from it are below 0 in both losses after Holm's correction for
    all pairs that are looked at; the larger of the two p-values counts, as both must hold (Berger 1982).
    """
    if len(found) == 1:
        changes = (("val/loss", found[0].held_out), ("ref/loss", found[0].reference))
        both = listed([f"{name} {percent(change.estimate)} {interval(change)}" for name, change in changes])
        return [f"Since step 0: {both}."]
    front = [point for point in found if not any(point.is_behind(other) for other in found)]
    behind = [(point, other) for point in found for other in front if point.is_behind(other)]
    p = holm([_p(comparison, point, other, averaged) for point, other in behind])
    beaten: dict[str, list[str]] = {}
    for (point, other), value in zip(behind, p, strict=True):
        names = beaten.setdefault(point.variant.label, [])
        if value < LEVEL:
            names.append(other.variant.label)
    labels = listed([point.variant.label for point in front])
    sentences = [f"No other setting measured better than {labels} in both gain and forgetting."]
    if proven := [f"{label} (by {listed(names)})" for label, names in beaten.items() if names]:
        sentences.append(f"Beaten in both by more than the noise: {', '.join(proven)}.")
    if open_ := [label for label, names in beaten.items() if not names]:
        sentences.append(f"Behind in both, but not by more than the noise, so they may be as good: {', '.join(open_)}.")
    return sentences


def listed(labels: Sequence[str]) -> str:
    """a, b and c."""
    parts = [", ".join(labels[:-1]), *labels[-1:]]
    return " and ".join(part for part in parts if part)


def _p(comparison: Comparison, point: Point, other: Point, averaged: bool) -> float:
    """The p-value of the other being better in both; 1 if they have no runs in common, or one is no better."""
    shared = [pair for pair in other.variant.runs if pair in point.variant.runs]
    if not shared:
        return 1.0
    pairs, values = folds.complete(other.variant.runs, shared), []
    for prefix in LOSSES[averaged]:
        (errors, of), (theirs, _) = (folds.stacked(side.variant.runs, pairs, prefix) for side in (other, point))
        found = difference(errors, theirs, folds=of)
        values.append(found.p if found.estimate < 0 else 1.0)
    return max(values)
