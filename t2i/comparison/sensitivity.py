"""What a comparison that found no difference could have found, and what it takes to find less."""

import numpy as np

from t2i.comparison.planning import Goal, Planner
from t2i.comparison.power import POWER, Pilot, detectable
from t2i.comparison.verdicts import AnyMetric, Comparison, Verdict

MORE_IMAGES = 100  # times as many as were measured, at most, are recommended


def could_have_found(comparison: Comparison, verdict: Verdict, metric: AnyMetric, num_tests: int) -> str:
    """A sentence on the difference that a comparison of this size finds with a power of 80 %, and on half of it."""
    pilot = comparison.pilot(verdict.variant, metric)
    difference = detectable(pilot, pilot.size, comparisons=num_tests) if pilot else 0.0
    if pilot is None or not difference:
        return ""
    folds = any(run.fold is not None for run in verdict.variant.runs.values())
    of_models = " between these models" if pilot.size.seeds == 1 else ""
    half = _takes(pilot, Goal(difference / 2, POWER, num_tests), folds)
    size = _size(difference, metric)
    return (
        f"A comparison of this size finds a difference of {size}{of_models} in {100 * POWER:.0f} % of cases; half of "
        f"that takes {half}."
    )


def _size(difference: float, metric: AnyMetric) -> str:
    """A difference of log errors as a percentage, or of scores."""
    if not metric.relative:
        return f"{difference:.2g}"
    percent = min(100 * np.expm1(difference), 999)
    return f"{percent:.0f} %" if percent >= 100 else f"{percent:.2g} %"


def _takes(pilot: Pilot, goal: Goal, folds: bool) -> str:
    planner = Planner(pilot, goal, MORE_IMAGES * pilot.size.images)
    seeds, images = planner.seeds(pilot.size), None if folds else planner.images(pilot.size)
    ways = [f"{seeds.seeds} seeds"] if seeds else []
    ways += [f"{images.images} images"] if images else []
    return " or ".join(ways) or "both more seeds and more images"
