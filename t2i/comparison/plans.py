"""From a pilot to a plan: the sizes of a comparison that find a difference, and what they cost."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from t2i.comparison.costs import Cost, cost_of
from t2i.comparison.planning import MOST_SEEDS, Goal, Planner
from t2i.comparison.power import Pilot, Size
from t2i.comparison.results import Result
from t2i.comparison.verdicts import AnyMetric, Comparison
from t2i.config import ConfigError


@dataclass(frozen=True)
class Option:
    """One way to reach the power."""

    name: str
    size: Size | None  # None: it can't be reached so
    power: float  # of the size, or the highest that can be reached


@dataclass(frozen=True)
class Plan:
    """How large a comparison has to be."""

    pilot: Pilot
    goal: Goal
    metric: AnyMetric
    cost: Cost
    held_out: int  # images that can be measured at most
    options: list[Option]  # the pilot's size, what raising one thing alone needs, and the cheapest, which is the last
    exact_seeds: int | None  # seeds with the cheapest's images if the pilot's variances were exact

    @property
    def recommended(self) -> Size | None:
        return self.options[-1].size

    def hours(self, size: Size) -> float:
        """NaN if the pilot's records don't tell."""
        return self.cost.hours(size, self.goal.comparisons + 1)


def plan_of(comparison: Comparison, metric: AnyMetric, goal: Goal, most_images: int | None = None) -> Plan:
    """The plan that a pilot allows. Raises ConfigError if its runs have no differences that tell variances."""
    pilot = pooled_pilot(comparison, metric)
    now, cost = pilot.size, cost_of(comparison.runs, pilot.size)
    held_out = max(most_images or min(_held_out(run) for run in comparison.runs), now.images, 2)
    planner = Planner(pilot, goal, held_out)
    options = [Option("pilot's size", now, planner.power(now))]
    if now.seeds > 1:
        options.append(_option(planner, "seeds alone", planner.seeds(now), replace(now, seeds=MOST_SEEDS)))
    options.append(_option(planner, "images alone", planner.images(now), replace(now, images=held_out)))
    if pilot.image_noise or pilot.rest_noise:
        most = replace(now, levels=8 * now.levels)
        options.append(_option(planner, "timesteps alone", planner.levels(now), most))
    cheapest = planner.cheapest(_price(cost, goal))
    largest = Size(MOST_SEEDS if now.seeds > 1 else 1, held_out, 4 * now.levels)
    options.append(_option(planner, "cheapest", cheapest, largest))
    exact = planner.as_if_exact().seeds(cheapest) if cheapest else None
    return Plan(pilot, goal, metric, cost, held_out, options, exact.seeds if exact else None)


def pooled_pilot(comparison: Comparison, metric: AnyMetric) -> Pilot:
    """The mean of the variants' pilots, which share the baseline's runs, so that they know no more than one of them."""
    verdicts = comparison.verdicts(metric)
    if not verdicts:
        raise ConfigError(
            "the pilot has no two settings with a seed in common, so it has no differences; run two, such as "
            "t2i train -m sweep=pilot seed=0,1,2,3,4 loss.snr_gamma=1,5"
        )
    if any(run.fold is not None for run in comparison.runs):
        raise ConfigError(
            "the pilot holds out folds (validation.folds), whose images can't be counted one by one; give a pilot "
            "without folds, or raise the number of seeds"
        )
    most = max(verdict.seeds for verdict in verdicts)
    pilots = [comparison.pilot(verdict.variant, metric) for verdict in verdicts if verdict.seeds == most]
    known = [pilot for pilot in pilots if pilot is not None]
    if not known:
        raise ConfigError(f"--metric {metric.name} can't be planned; choose val/loss or val/ema/loss")
    mean = {
        field.name: float(np.mean([getattr(pilot, field.name) for pilot in known]))
        for field in fields(Pilot)
        if field.name != "size"
    }
    return Pilot(size=known[0].size, **mean)


def _held_out(run: Result) -> int:
    return (run.info.get("pictures") or {}).get("validation") or 0


def _option(planner: Planner, name: str, size: Size | None, largest: Size) -> Option:
    return Option(name, size, planner.power(size or largest))


def _price(cost: Cost, goal: Goal) -> Callable[[Size], float]:
    """The hours of a size; if the records don't tell, seeds and a hundredth of the measured cells."""
    if np.isfinite(cost.hours(cost.size, 1)):
        return lambda size: cost.hours(size, goal.comparisons + 1)
    return lambda size: size.seeds * (1000 + size.images * size.levels / 100)
