"""What people prefer, in sentences and in rows of tables."""

from itertools import pairwise

import numpy as np

from t2i.comparison.bradley_terry import Lead
from t2i.comparison.people import People, Preference
from t2i.comparison.preferences import WinRate
from t2i.comparison.significance import LEVEL
from t2i.comparison.tables import Cell

WORDS = {"better": "preferred", "worse": "liked less", "same": "not proven"}


def preference_rows(people: People) -> list[dict[str, Cell]]:
    """One row for each variant that was judged against the baseline, best first."""
    return [
        {
            "variant": Cell(preference.variant),
            "votes": Cell(str(preference.rate.votes), preference.rate.votes),
            "win rate": Cell(rate_text(preference.rate), preference.rate.estimate),
            "these judges alone": Cell(rate_text(preference.alone), preference.alone.estimate),
            "p": _p(preference.p),
            "verdict": Cell(WORDS[preference.outcome], style=preference.outcome),
        }
        for preference in people.preferences
    ]


def order_rows(people: People) -> list[dict[str, Cell]]:
    """One row for each of more than two variants, best first: the rate that its strength predicts."""
    if len(people.connected) < 3:
        return []
    return [
        {
            "variant": Cell(label, style="baseline" if label == people.labels[0] else ""),
            "predicted win rate": Cell("50 %" if label == people.labels[0] else lead_text(lead), lead.as_rate[0]),
            "log-odds": Cell(f"{lead.estimate:+.2f}".replace("-", "−"), lead.estimate),
            "liked more than": Cell(", ".join(_beaten(people, label)) or "–"),
        }
        for label, lead in people.order
    ]


def judge_rows(people: People) -> list[dict[str, Cell]]:
    """One row for each judge."""
    return [
        {
            "judge": Cell(row.judge),
            "votes": Cell(str(row.votes), row.votes),
            "equal": Cell(f"{100 * row.ties / row.votes:.0f} %" if row.votes else "–", row.ties),
            "same choice again": Cell(f"{row.same} of {row.repeats}", row.same),
        }
        for row in people.tally.judges
    ]


def people_sentences(people: People) -> list[tuple[str, str]]:
    """(outcome, sentence) for every variant, the order and the judges; ("scope", what the intervals cover)."""
    if not people.preferences and len(people.connected) < 2:
        return [("same", "There are no votes on the compared runs yet.")]
    spoken = [(preference.outcome, _sentence(people, preference)) for preference in people.preferences]
    if len(people.connected) > 2:
        spoken.append(("same", _order(people)))
    return [*spoken, *(("same", sentence) for sentence in _judges(people)), ("scope", _scope(people))]


def rate_text(rate: WinRate) -> str:
    """62 % [51, 72]"""
    return f"{100 * rate.estimate:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def lead_text(lead: Lead) -> str:
    """The lead as a win rate: 62 % [51, 72]"""
    rate, low, high = (100 * value for value in lead.as_rate)
    return f"{rate:.0f} % [{low:.0f}, {high:.0f}]"


def _sentence(people: People, preference: Preference) -> str:
    rate, label, baseline = preference.rate, preference.variant, people.labels[0]
    won = f"it won {rate_text(rate)} of {rate.votes} votes"
    if preference.outcome != "same":
        return f"People like {label} {'more' if preference.outcome == 'better' else 'less'} than {baseline}: {won}."
    sentence = f"{label}: no preference over {baseline} or against it is proven; {won}"
    if rate.p < LEVEL:
        return f"{sentence}, which does not survive correction for {len(people.preferences)} comparisons."
    return f"{sentence}{_alone(preference)}. {_more(rate, _few(people))}"


def _alone(preference: Preference) -> str:
    """What holds for these judges, if it is more than what can be said of others."""
    alone = preference.alone
    if alone.low <= 0.5 <= alone.high:
        return ""
    return f", but these judges by themselves do prefer one, {rate_text(alone)}"


def _more(rate: WinRate, few: str) -> str:
    more, half = rate.more_votes()
    more = more if more < 20 else round(more, -1)
    if half is not None:
        width = f"; about {more} more votes would make the interval ±{100 * half:.0f} points" if more else ""
        return f"The rate is too close to 50 % to say how many votes would tell{width}."
    if more == 1:
        return f"The votes would be enough; what is missing is more {few}."
    return f"If the rate stays, about {more} more votes, by further judges on further prompts, would leave 50 % out."


def _few(people: People) -> str:
    """What there are so few of that the interval is wide."""
    counts = zip(("judges", "training seeds"), people.ballots.factors, strict=False)
    few = [name for name, factor in counts if 1 < len(np.unique(factor)) < 4]
    return " and ".join(few) or "judges and prompts"


def _order(people: People) -> str:
    ranked = [label for label, _ in people.order]
    text = ranked[0]
    for above, below in pairwise(ranked):
        text += f" {'>' if people.leads[above, below][1] < LEVEL else '≥'} {below}"
    proven = sum(p < LEVEL for _, p in people.leads.values())
    return (
        f"Order of liking (Bradley–Terry): {text}. {proven} of {len(people.leads)} differences are larger than chance, "
        "after correction for their number (Holm)."
    )


def _judges(people: People) -> list[str]:
    sentences = []
    equal, pairs = people.agreement
    if pairs:
        beyond = (
            "" if np.isnan(people.alpha) else f"; Krippendorff's alpha is {people.alpha:.2f} (1: agreement, 0: chance)"
        )
        sentences.append(
            f"Two judges of the same pair made the same choice in {100 * equal:.0f} % of {pairs} cases{beyond}."
        )
    again = sum(row.repeats for row in people.tally.judges)
    if again:
        same = sum(row.same for row in people.tally.judges)
        sentences.append(f"When a pair came again with its sides swapped, {same} of {again} choices were the same.")
    return sentences


def _scope(people: People) -> str:
    judges, seeds, prompts = (len(np.unique(factor)) for factor in people.ballots.factors)
    covered = "prompts" if seeds == 1 else "training seeds and prompts"
    counted = (
        f"{judges} judge{'s' if judges > 1 else ''}, {seeds} training seed{'s' if seeds > 1 else ''}, {prompts} prompts"
    )
    who = "this judge only" if judges == 1 else "other judges, too"
    scope = f"{counted}: the intervals cover {who}, over other {covered}."
    if few := [name for name, number in (("judge", judges), ("training seed", seeds)) if number == 2]:
        scope += f" A third {' and a third '.join(few)} would make them far narrower."
    return scope if seeds > 1 else f"{scope} Models of another training seed could reverse a result."


def _beaten(people: People, label: str) -> list[str]:
    return [worse for (better, worse), (_, p) in people.leads.items() if better == label and p < LEVEL]


def _p(p: float) -> Cell:
    return Cell("<0.001" if p < 0.001 else f"{p:.3f}", p)
