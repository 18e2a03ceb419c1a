"""Votes as arrays: each is on a pair of variants, a prompt and a training seed, and by a judge."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from t2i.runs.judgements import Judgements, Shown, Vote

UNPAIRED = "on runs that are not paired"
OTHER_BATTERY = "on images of another battery"


@dataclass(frozen=True)
class Side:
    """The model that drew an image: its variant, and the key that pairs its run; None pairs it with any."""

    variant: str
    pair: tuple | None


@dataclass(frozen=True)
class Ballots:
    """N votes on pairs of variants, as arrays of length N; variants are numbered in the order of `labels`."""

    first: np.ndarray
    second: np.ndarray
    won: np.ndarray  # 1 if the first was chosen, 0 if the second, ½ for a tie
    judge: np.ndarray
    seed: np.ndarray  # training seed
    prompt: np.ndarray

    @property
    def factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.judge, self.seed, self.prompt

    def take(self, chosen: np.ndarray) -> "Ballots":
        return Ballots(*(values[chosen] for values in vars(self).values()))


@dataclass(frozen=True)
class Consistency:
    """What a judge did."""

    judge: str
    votes: int
    ties: int
    repeats: int  # pairs that came again, with their sides swapped
    same: int  # of these, those that were judged as before


@dataclass(frozen=True, eq=False)
class Tally:
    """The votes that count."""

    ballots: Ballots
    units: list[tuple]  # what each vote is about
    judges: list[Consistency]
    warnings: list[str]  # which votes don't count, and why


SideOf = Callable[[Vote, Shown], Side | str]  # the model behind an image of a vote, or why the vote does not count
Placed = tuple[Vote, Side, Side]  # with the sides of the left and the right image


def tally(files: Sequence[tuple[Judgements, SideOf]], labels: Sequence[str]) -> Tally:
    """The votes of some files on the variants `labels`, which number them; repeats show consistency only."""
    placed: list[Placed] = []
    reasons, warnings = Counter[str](), []
    for judgements, side_of in files:
        votes, damaged = judgements.read()
        if damaged:
            lines = f"{damaged} lines" if damaged > 1 else "1 line"
            warnings.append(f"{judgements.file}: {lines} can't be read, and count as no votes.")
        for vote in votes.values():
            found = _place(vote, side_of)
            if isinstance(found, str):
                reasons[found] += 1
            else:
                placed.append(found)
    batteries = Counter(vote.battery for vote, *_ in placed)
    if len(batteries) > 1:
        (most, count), *_ = batteries.most_common()
        reasons[OTHER_BATTERY] = len(placed) - count
        placed = [each for each in placed if each[0].battery == most]
    warnings += [f"Votes {why} do not count: {number}." for why, number in reasons.items()]
    ballots, units = _ballots([each for each in placed if not each[0].repeats], labels)
    return Tally(ballots, units, _consistency([vote for vote, *_ in placed]), warnings)


def _place(vote: Vote, side_of: SideOf) -> Placed | str:
    """The vote with its sides, or why it does not count."""
    left, right = side_of(vote, vote.left), side_of(vote, vote.right)
    if isinstance(left, str):
        return left
    if isinstance(right, str):
        return right
    paired = left.pair == right.pair or None in (left.pair, right.pair)
    return (vote, left, right) if paired and left.variant != right.variant else UNPAIRED


def _ballots(placed: Sequence[Placed], labels: Sequence[str]) -> tuple[Ballots, list[tuple]]:
    """The votes as arrays, and what each is about; the variant with the lower number is the first."""
    number = {label: i for i, label in enumerate(labels)}
    judges, seeds = dict[str, int](), dict[tuple | None, int]()
    rows, units = [], []
    for vote, left, right in placed:
        won = {"left": 1.0, "right": 0.0, "equal": 0.5}[vote.choice]
        one, two = number[left.variant], number[right.variant]
        if one > two:
            one, two, won = two, one, 1 - won
        pair = right.pair if left.pair is None else left.pair
        judge, seed = judges.setdefault(vote.judge, len(judges)), seeds.setdefault(pair, len(seeds))
        rows.append((one, two, won, judge, seed, vote.prompt))
        units.append((one, two, seed, vote.prompt, vote.seed))
    columns = np.array(rows, dtype=float).reshape(-1, 6).T
    first, second, won, judge, seed, prompt = columns
    whole = [values.astype(int) for values in (first, second, judge, seed, prompt)]
    return Ballots(whole[0], whole[1], won, *whole[2:]), units


def _consistency(votes: Sequence[Vote]) -> list[Consistency]:
    by_judge = defaultdict(dict)
    for vote in votes:
        by_judge[vote.judge][vote.id] = vote
    rows = []
    for judge, mine in by_judge.items():
        again = [(vote, mine[vote.repeats]) for vote in mine.values() if vote.repeats in mine]
        same = sum(_chosen(vote) == _chosen(before) for vote, before in again)
        new = [vote for vote in mine.values() if not vote.repeats]
        rows.append(Consistency(judge, len(new), sum(vote.choice == "equal" for vote in new), len(again), same))
    return sorted(rows, key=lambda row: -row.votes)


def _chosen(vote: Vote) -> str:
    """The run whose image was chosen; "" for a tie."""
    return "" if vote.choice == "equal" else (vote.left if vote.choice == "left" else vote.right).run
