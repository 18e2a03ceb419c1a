"""What people prefer: from the votes of judgements.jsonl to win rates, an order, and how far judges agree."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from t2i.comparison.agreement import agreement, alpha
from t2i.comparison.ballots import Ballots, Side, SideOf, Tally, tally
from t2i.comparison.bradley_terry import Lead, Strengths, fit
from t2i.comparison.preferences import WinRate, win_rate
from t2i.comparison.results import Result
from t2i.comparison.significance import LEVEL, holm
from t2i.comparison.verdicts import Comparison
from t2i.runs.image_files import images_folder
from t2i.runs.judgements import NAME, Judgements, Shown, Vote

STALE = "on images that were drawn again since"
UNKNOWN = "on runs that are not compared, or on images of another step"


@dataclass(frozen=True)
class Preference:
    """How a variant fares against the baseline."""

    variant: str
    rate: WinRate
    p: float  # adjusted for the number of variants (Holm 1979)
    alone: WinRate  # with these judges only, whatever others would say

    @property
    def outcome(self) -> str:
        """better, worse or same, which means that no preference was proven."""
        if not self.p < LEVEL:
            return "same"
        return "better" if self.rate.estimate > 0.5 else "worse"


@dataclass(frozen=True, eq=False)
class People:
    """The votes on a comparison's variants, and what follows from them."""

    labels: list[str]  # the baseline first
    tally: Tally

    @property
    def ballots(self) -> Ballots:
        return self.tally.ballots

    @cached_property
    def preferences(self) -> list[Preference]:
        """Of the variants that were judged against the baseline, best first."""
        found = {label: self.rate(label, self.labels[0]) for label in self.labels[1:]}
        rates = {label: rate for label, rate in found.items() if rate is not None}
        adjusted = holm([rate.p for rate, _ in rates.values()]).tolist()
        preferences = [
            Preference(label, rate, p, alone) for (label, (rate, alone)), p in zip(rates.items(), adjusted, strict=True)
        ]
        return sorted(preferences, key=lambda preference: -preference.rate.estimate)

    def rate(self, label: str, other: str) -> tuple[WinRate, WinRate] | None:
        """The win rate over another variant: with random judges, and with these alone; None without votes."""
        votes, one, two = self.ballots, self.labels.index(label), self.labels.index(other)
        there, back = (votes.first == one) & (votes.second == two), (votes.first == two) & (votes.second == one)
        chosen = votes.take(there | back)
        if not len(chosen.won):
            return None
        won = np.where(chosen.first == one, chosen.won, 1 - chosen.won)
        return win_rate(won, chosen.factors), win_rate(won, chosen.factors[1:])

    @cached_property
    def connected(self) -> list[str]:
        """The variants that votes connect with the baseline, maybe by others between them."""
        known, pairs = {0}, set(zip(self.ballots.first.tolist(), self.ballots.second.tolist(), strict=True))
        while more := {each for pair in pairs if known & {*pair} for each in pair} - known:
            known |= more
        return [self.labels[i] for i in sorted(known)]

    @cached_property
    def strengths(self) -> Strengths:
        """The Bradley–Terry model of the connected variants, in their order."""
        numbers = [self.labels.index(label) for label in self.connected]
        votes = self.ballots.take(np.isin(self.ballots.first, numbers))
        return fit(
            np.searchsorted(numbers, votes.first), np.searchsorted(numbers, votes.second), votes.won, votes.factors
        )

    @cached_property
    def order(self) -> list[tuple[str, Lead]]:
        """The connected variants, best first, with their lead over the baseline."""
        leads = {label: self.strengths.lead(i, 0) for i, label in enumerate(self.connected) if i}
        return sorted(({self.labels[0]: Lead(0.0, 0.0, 0.0, 1.0)} | leads).items(), key=lambda each: -each[1].estimate)

    @cached_property
    def leads(self) -> dict[tuple[str, str], tuple[Lead, float]]:
        """(better, worse) -> the difference of their strengths, and its p adjusted for the number of pairs (Holm)."""
        ranked = [label for label, _ in self.order]
        number = {label: i for i, label in enumerate(self.connected)}
        pairs = list(combinations(ranked, 2))
        leads = [self.strengths.lead(number[one], number[two]) for one, two in pairs]
        return {
            pair: (lead, p)
            for pair, lead, p in zip(pairs, leads, holm([lead.p for lead in leads]).tolist(), strict=True)
        }

    @cached_property
    def alpha(self) -> float:
        """Krippendorff's alpha between the judges; NaN if no pair was judged by two."""
        return alpha(self.tally.units, self.ballots.won)

    @cached_property
    def agreement(self) -> tuple[float, int]:
        """How often two votes on the same pair are equal, and the number of such pairs of votes."""
        return agreement(self.tally.units, self.ballots.won)


def people_of(comparison: Comparison, paths: Iterable[Path]) -> People | None:
    """The votes on the compared runs, from the files in `paths` and in the folders of the runs; None without a file."""
    variants = sorted(comparison.variants, key=lambda variant: variant is not comparison.baseline)
    runs = {run.folder: (variant.label, pair, run) for variant in variants for pair, run in variant.runs.items()}
    places = [*map(Path.resolve, paths), *(folder.parent for folder in runs), *runs]
    folders = [place for place in dict.fromkeys(places) if (place / NAME).is_file()]

    def sides(folder: Path) -> SideOf:
        return lambda vote, shown: _side(vote, shown, runs.get(where(folder, shown.run)))

    labels = [variant.label for variant in variants]
    files = [(Judgements(folder), sides(folder)) for folder in folders]
    return People(labels, tally(files, labels)) if folders else None


def _side(vote: Vote, shown: Shown, run: tuple[str, tuple, Result] | None) -> Side | str:
    """The run that drew an image, or why the vote does not count."""
    if run is None or run[2].step != shown.step:
        return UNKNOWN
    file = images_folder(run[2].folder, vote.battery, shown.step) / f"{vote.prompt:05d}-{vote.seed}.png"
    if file.is_file() and _sha256(file, file.stat().st_mtime_ns) != shown.sha256:
        return STALE
    return Side(run[0], run[1])


@cache
def where(folder: Path, run: str) -> Path:
    return Path(os.path.normpath(folder / run))


@cache
def _sha256(file: Path, changed: int) -> str:
    """The hash of a file that was changed at this time."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
