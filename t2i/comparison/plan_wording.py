"""A plan as a table and in words."""

import numpy as np

from t2i.comparison.plans import Option, Plan
from t2i.evaluation.score_metric import ScoreMetric

FEW_SEEDS = 4  # below, the numbers mostly say what the pilot does not know
COLUMNS = ("raise", "seeds", "images", "timesteps", "power", "hours")


def title(plan: Plan) -> str:
    goal = plan.goal
    size = (
        f"{goal.difference:.3g}"
        if isinstance(plan.metric, ScoreMetric)
        else f"{-100 * np.expm1(-goal.difference):.3g} %"
    )
    family = f", among {goal.comparisons} comparisons" if goal.comparisons > 1 else ""
    return (
        f"To find a difference of {size} in {plan.metric.name} with a probability of {100 * goal.power:.0f} %{family}"
    )


def rows(plan: Plan) -> list[tuple[str, ...]]:
    """The cells of the table's lines, under COLUMNS."""
    return [_row(plan, option) for option in plan.options]


def _row(plan: Plan, option: Option) -> tuple[str, ...]:
    if option.size is None:
        return (option.name, "–", "–", "–", f"at most {_percent(option.power)}", "–")
    size = option.size
    levels = str(size.levels) if plan.pilot.size.levels > 1 else "–"
    hours = plan.hours(size)
    cost = f"{hours:.2g}" if hours < 10 else f"{hours:.0f}" if np.isfinite(hours) else "–"
    return (option.name, str(size.seeds), str(size.images), levels, _percent(option.power), cost)


def _percent(power: float) -> str:
    return f"{100 * power:.0f} %"


def notes(plan: Plan) -> list[str]:
    """What the numbers rest on, and which of the three is the cheapest to raise."""
    said = []
    if plan.pilot.size.seeds == 1:
        said.append(
            "The pilot has one seed, so how much another seed would change is not known: these numbers hold for its "
            "trained models only. To compare the settings, run the pilot with seed=0,1,2,3,4 first."
        )
    elif plan.pilot.size.seeds < FEW_SEEDS:
        said.append(
            f"The pilot has {plan.pilot.size.seeds} seeds, which hardly tell how much seeds vary; the numbers allow "
            "for that and are large. With 5 seeds they are usually far smaller."
        )
    said += [_cheapest_to_raise(plan), *_shares(plan), *_uncertainty(plan), *_images(plan), _hours(plan)]
    return [sentence for sentence in said if sentence]


def _cheapest_to_raise(plan: Plan) -> str:
    now, *alone, cheapest = plan.options
    if now.power >= plan.goal.power:
        return "The pilot's size suffices already."
    reached = {option.name: plan.hours(option.size) for option in alone if option.size}
    if not reached:
        end = "" if cheapest.size else " Nor do all together: train for longer, or look for a larger difference."
        return f"No one of seeds, images and timesteps suffices alone.{end}"
    least = min(reached, key=lambda name: reached[name])
    return f"The cheapest to raise alone: {least.removesuffix(' alone')}." if np.isfinite(reached[least]) else ""


def _shares(plan: Plan) -> list[str]:
    """Where the variance of the pilot's difference comes from."""
    found, size = plan.pilot.exact(), plan.pilot.size
    if size.seeds == 1:
        return []
    parts = {
        "seeds": float(found.seed) / size.seeds,
        "images": float(found.image) / size.images,
        "their interaction and noise": float(found.rest) / (size.seeds * size.images),
    }
    total = sum(parts.values())
    listed = ", ".join(f"{name} {_percent(part / total)}" for name, part in parts.items()) if total else ""
    return [f"Of the pilot's variance: {listed}."] if listed else []


def _uncertainty(plan: Plan) -> list[str]:
    if plan.exact_seeds is None or plan.recommended is None or plan.exact_seeds >= plan.recommended.seeds:
        return []
    return [
        f"If the pilot's variances were exact, {plan.exact_seeds} seeds would do; the others allow for what its "
        f"{plan.pilot.size.seeds} seeds can't tell. Plan again when more seeds have run."
    ]


def _images(plan: Plan) -> list[str]:
    if plan.recommended and plan.recommended.images < plan.held_out:
        return []
    return [
        f"{plan.held_out} held-out images is the most that the plan may use; --images says how many you could hold out."
    ]


def _hours(plan: Plan) -> str:
    cost = plan.cost
    if not np.isfinite(cost.hours(cost.size, 1)):
        return "The pilot's records don't tell how long a step and a validation take, so there are no hours."
    return (
        f"Hours are those of {plan.goal.comparisons + 1} settings, one run at a time, as fast as the pilot: "
        f"{cost.steps} steps of {cost.per_step:.2g} s, {cost.validations} validations of {cost.per_validation:.2g} s "
        f"with their samples (of {cost.size.images} images), and {cost.start:.0f} s to start."
    )
