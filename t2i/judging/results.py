"""What the votes of a contest say, without a comparison of errors."""

from pathlib import Path

from t2i.comparison.ballots import Side, SideOf, tally
from t2i.comparison.people import STALE, UNKNOWN, People, where
from t2i.judging.contestants import Contest, Contestant
from t2i.runs.judgements import Judgements, Shown, Vote


def people_in(contest: Contest, judgements: Judgements) -> People:
    """The votes on the contest's variants. A model that meets those of all training seeds has none of its own."""
    sides: dict[Path, tuple[Side, Contestant]] = {}
    for label, models in contest.variants.items():
        for pair, contestant in models.items():
            several = contestant.folder in sides
            sides[contestant.folder] = (Side(label, None if several else pair), contestant)
    labels = sorted(contest.variants, key=lambda label: label != contest.baseline)
    return People(labels, tally([(judgements, _finder(judgements.folder, sides))], labels))


def _finder(below: Path, sides: dict[Path, tuple[Side, Contestant]]) -> SideOf:
    def find(vote: Vote, shown: Shown) -> Side | str:
        side, contestant = sides.get(where(below, shown.run), (None, None))
        if side is None or contestant is None or contestant.step != shown.step:
            return UNKNOWN
        if vote.battery != contestant.images.hash:
            return UNKNOWN
        drawn = (vote.prompt, vote.seed) in contestant.drawn
        return STALE if drawn and contestant.shown(vote.prompt, vote.seed, below) != shown else side

    return find
