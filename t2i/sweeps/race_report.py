"""What is said of a race: after each round, and at its end."""

import math
from typing import Any

from t2i.comparison.race_rules import Bounds
from t2i.runs.text import spoken_time
from t2i.sweeps.race import UNKNOWN, Lead, Look, Race

FIXED = ("rules", "settings")  # what is not to change while a race runs
VERSION = 2  # raised when a race that goes on would take other decisions
WHY = {
    "budget": ("The budget is spent", "raise the budget"),
    "seeds": ("All seeds have run", "add seeds"),
    "failures": ("The other settings have failed", "see what their runs say"),
}


def percent(log_ratio: float) -> str:
    return f"{math.expm1(log_ratio):.1%}"


def why_stopped(look: Look, setting: str, end: int) -> str:
    """The sentence in run.json of a run that was stopped."""
    lead = look.leads[setting]
    return (
        f"worse than {look.leader} in a race: {percent(lead.now.estimate)} at step {look.step} of {end}, "
        f"at least {percent(max(lead.low, 0.0))}, {look.seeds} seeds"
    )


def explain_look(look: Look, race: Race) -> list[str]:
    """What a round has shown, as lines of the log."""
    end = race.rules.rounds[-1]
    spent = f"{look.spent:,} of the full grid's {race.full_grid:,} steps"
    lines = [f"step {look.step} of {end}, {look.seeds} seeds: {look.leader} leads · {spent}"]
    for setting, lead in look.leads.items():
        verdict = "stopped" if setting in look.stopped else "goes on"
        lines.append(f"  {setting}: {_interval(lead)}, {verdict}")
    if race.early and look is race.looks[0]:
        lines.append("  further seeds tell more at a lower cost than further steps, and join here")
    return lines


def _interval(lead: Lead) -> str:
    def interval(bounds: Bounds) -> str:
        return f"{math.expm1(bounds.estimate):+.1%} [{math.expm1(bounds.low):+.1%}, {math.expm1(bounds.high):+.1%}]"

    if lead == UNKNOWN:
        return "the same so far"
    if lead.now == lead.at_end:
        return interval(lead.now)
    return f"{interval(lead.now)}, at the end {interval(lead.at_end)} if the trend lasts"


def summary(race: Race, hours: float) -> list[str]:
    """The answer, what it cost, and the risk taken."""
    rules, end = race.rules, race.rules.rounds[-1]
    lines = [*_answer(race)]
    share = race.spent / race.full_grid
    grid = f"{len(race.settings)} settings × {len(rules.seeds)} seeds × {end:,} steps"
    saved = f" (about {spoken_time(hours / share)})" if hours and share else ""
    lines.append(f"Cost: {race.spent:,} steps in {spoken_time(hours)}, {share:.0%} of the full grid of {grid}{saved}.")
    lines.append(
        f"Risk: at most {rules.risk:.0%} that the answer is more than {rules.tolerance:.1%} worse than the best "
        "setting, over all rounds and settings; besides, curves that turn after their setting was stopped."
    )
    if race.changed:
        lines.append("The race was changed after it had begun, so this risk was taken more than once.")
    if race.failed:
        lines.append(f"Not judged, as runs of it failed: {'; '.join(race.failed)}.")
    return lines


def _answer(race: Race) -> list[str]:
    rules, look = race.rules, race.looks[-1] if race.looks else None
    if look is None:
        why = "the budget does not cover a round" if race.ended_by == "budget" else "no round is over"
        return [f"Nothing is known yet: {why}."]
    at = f"step {look.step} of {rules.rounds[-1]}, {look.seeds} seeds, {race.weights} weights"
    if race.winner is not None:
        rivals = [setting for setting in race.left if setting != race.winner]
        claim = f" or within {rules.tolerance:.1%} of the best" if rivals else ""
        lines = [f"Best{claim}: {race.winner} ({at})."]
        lines += [
            f"As good: {setting} ({_interval(look.leads[setting])})." for setting in rivals if setting in look.leads
        ]
        return lines
    if race.ended_by is None:
        return [f"The race goes on. {look.leader} leads ({at})."]
    why, more = WHY[race.ended_by]
    lines = [f"{why}, and no setting is best beyond doubt. {look.leader} leads ({at})."]
    for setting in race.left:
        if setting in look.leads:
            lead = look.leads[setting]
            lines.append(f"Not told apart: {setting} ({_interval(lead)}), up to {-math.expm1(lead.low):.1%} better.")
    lines.append(f"To tell them apart, {more} and run the command again: it goes on from here.")
    return lines


def record(race: Race, hours: float) -> dict[str, Any]:
    """The content of race.json."""
    return {
        "rules": {
            "version": VERSION,
            "rounds": list(race.rules.rounds),
            "seeds": list(race.rules.seeds),
            "first_seeds": race.rules.first_seeds,
            "risk": race.rules.risk,
            "tolerance": race.rules.tolerance,
        },
        "settings": list(race.settings),
        "looks": [
            {
                "step": look.step,
                "seeds": look.seeds,
                "spent_steps": look.spent,
                "leader": look.leader,
                "stopped": look.stopped,
                "leads": {setting: _numbers(lead) for setting, lead in look.leads.items()},
            }
            for look in race.looks
        ],
        "seeds_join": "after the first round" if race.early else "after the last round",
        "changed": race.changed,
        "winner": race.winner,
        "left": race.left,
        "failed": race.failed,
        "spent_steps": race.spent,
        "full_grid_steps": race.full_grid,
        "hours": hours,
        "summary": summary(race, hours),
    }


def _numbers(lead: Lead) -> dict[str, dict[str, float] | None]:
    """Log ratios; none of what is the same so far."""
    return {name: None if lead == UNKNOWN else vars(bounds) for name, bounds in vars(lead).items()}
