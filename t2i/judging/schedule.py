"""Which pairs of images a judge sees, in which order and on which sides: a function of the judge's name and a seed.

In every round, each pair of variants comes once. Its prompts come once each before any comes again, and its training
seeds and the seeds of the images take turns. All judges see the same pairs, each round in an order of their own: that
shows whether they agree. After every tenth pair, an earlier one returns with its sides swapped.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from t2i.judging.contestants import Contest, Contestant

REPEAT_EVERY = 10  # pairs
BACK = (4, 9)  # how many pairs before the last one the repeated pair was shown, at least and at most


@dataclass(frozen=True)
class Pair:
    """Two images of the same prompt and seed."""

    id: str  # says nothing about the variants
    prompt: int
    seed: int
    left: Contestant
    right: Contestant
    repeats: str = ""  # the id of the pair that is shown again


@dataclass(frozen=True)
class Item:
    """A pair whose sides are not drawn yet."""

    prompt: int
    seed: int
    first: Contestant
    second: Contestant


def schedule(contest: Contest, below: Path, judge: str, seed: int, count: int) -> list[Pair]:
    """The pairs of a judge: `count` different ones, or all if there are fewer, and the repeats.

    below: the folder of the votes, to which the identities of the runs are relative.
    """
    pairs: list[Pair] = []
    new: list[Pair] = []
    chance = random.Random(f"{seed} {judge}")
    for item in _items(contest, seed, judge, count):
        key = identity(contest.battery, item, below)
        left, right = random.Random(f"{seed} {judge} {key}").sample([item.first, item.second], 2)
        new.append(Pair(key, item.prompt, item.seed, left, right))
        pairs.append(new[-1])
        if len(new) % REPEAT_EVERY == 0:
            before = new[-1 - chance.randint(*BACK)]
            again = hashlib.sha256(f"{before.id} again".encode()).hexdigest()[:16]
            pairs.append(Pair(again, before.prompt, before.seed, before.right, before.left, before.id))
    return pairs


def identity(battery: str, item: Item, below: Path) -> str:
    """A hash of all that is compared, the images included: those that were drawn again are another pair."""
    sides = sorted(repr(each.shown(item.prompt, item.seed, below)) for each in (item.first, item.second))
    return hashlib.sha256(repr((battery, item.prompt, item.seed, sides)).encode()).hexdigest()[:16]


def _items(contest: Contest, seed: int, judge: str, count: int) -> list[Item]:
    columns = [_of_two(contest, names, seed) for names in combinations(contest.variants, 2)]
    items: list[Item] = []
    number = 0
    while columns and len(items) < count:
        found = [(column, next(column, None)) for column in columns]
        columns = [column for column, item in found if item is not None]
        in_round = [item for _, item in found if item is not None]
        random.Random(f"{seed} {number}").shuffle(in_round)  # the same for all: the last round may be cut
        in_round = in_round[: count - len(items)]
        random.Random(f"{seed} {number} {judge}").shuffle(in_round)
        items += in_round
        number += 1
    return items


def _of_two(contest: Contest, names: tuple[str, str], seed: int) -> Iterator[Item]:
    """All pairs of images of two variants: prompt by prompt, the training seeds and image seeds in turn."""
    one, other = (contest.variants[name] for name in names)
    shared = [pair for pair in one if pair in other]
    prompts, seeds = list(range(len(contest.prompts))), next(iter(one.values())).images.seeds
    random.Random(f"{seed} {names}").shuffle(prompts)
    for turn in range(len(shared) * len(seeds)):
        for position, prompt in enumerate(prompts):
            pair = shared[(position + turn) % len(shared)]
            image_seed = seeds[(position + turn // len(shared)) % len(seeds)]
            if (prompt, image_seed) in one[pair].drawn & other[pair].drawn:
                yield Item(prompt, image_seed, one[pair], other[pair])
