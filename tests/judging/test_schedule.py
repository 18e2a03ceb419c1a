"""Which pairs a judge sees: every pair of variants equally often, prompts spread, some again with sides swapped."""

from collections import Counter

import pytest
from helpers.contests import PROMPTS, write_sweep

from t2i.judging.contestants import read_contest
from t2i.judging.schedule import BACK, REPEAT_EVERY, schedule


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    return read_contest([write_sweep(tmp_path_factory.mktemp("sweep"), (1, 5, 20), (0, 1))])


def label(contest, side):
    return next(name for name, models in contest.variants.items() if side in models.values())


def pairs_of(contest, judge="anna", seed=0, count=36):
    below = next(iter(contest.variants["snr_gamma=1"].values())).folder.parent
    return schedule(contest, below, judge, seed, count)


def new(pairs):
    return [pair for pair in pairs if not pair.repeats]


def test_every_pair_of_variants_comes_equally_often_at_any_moment(contest):
    pairs = new(pairs_of(contest))
    assert len(pairs) == 36
    for end in range(1, 37):
        counts = Counter(frozenset((label(contest, pair.left), label(contest, pair.right))) for pair in pairs[:end])
        assert max(counts.values()) - (min(counts.values()) if len(counts) == 3 else 0) <= 1


def test_prompts_and_seeds_are_spread(contest):
    """Twelve rounds show each pair of variants every prompt once, half of them of each training seed."""
    by_variants = {}
    for pair in new(pairs_of(contest)):
        names = frozenset((label(contest, pair.left), label(contest, pair.right)))
        by_variants.setdefault(names, []).append(pair)
    for pairs in by_variants.values():
        assert sorted(pair.prompt for pair in pairs) == list(range(len(PROMPTS)))
        assert set(Counter(pair.left.folder.name[-1] for pair in pairs).values()) == {6}
        assert len({pair.seed for pair in pairs}) == 2


def test_images_of_a_pair_are_of_the_same_training_seed(contest):
    for pair in pairs_of(contest):
        assert pair.left.folder.name.rpartition("_")[2] == pair.right.folder.name.rpartition("_")[2]


def test_all_pairs_of_images_come_once_if_enough_are_asked_for(contest):
    pairs = new(pairs_of(contest, count=10_000))
    assert len(pairs) == len({pair.id for pair in pairs}) == 3 * 2 * len(PROMPTS) * 2


def test_a_tenth_comes_again_with_sides_swapped(contest):
    pairs = pairs_of(contest)
    assert len(pairs) - 36 == 36 // REPEAT_EVERY
    by_id = {pair.id: (number, pair) for number, pair in enumerate(pairs)}
    for number, pair in enumerate(pairs):
        if pair.repeats:
            before, first = by_id[pair.repeats]
            assert (pair.left, pair.right) == (first.right, first.left)
            assert (pair.prompt, pair.seed) == (first.prompt, first.seed)
            assert BACK[0] < number - before <= BACK[1] + 2


def test_judges_see_the_same_pairs_in_orders_of_their_own(contest):
    anna, ben = new(pairs_of(contest)), new(pairs_of(contest, "ben"))
    assert [pair.id for pair in anna] != [pair.id for pair in ben]
    assert {pair.id for pair in anna} == {pair.id for pair in ben}
    for end in range(3, 36, 3):
        assert {pair.id for pair in anna[:end]} == {pair.id for pair in ben[:end]}


def test_sides_are_random(contest):
    left = Counter(label(contest, pair.left) for pair in new(pairs_of(contest, count=144)))
    assert all(30 <= number <= 66 for number in left.values())


def test_it_is_a_function_of_name_and_seed(contest):
    assert pairs_of(contest) == pairs_of(contest)
    assert {pair.id for pair in pairs_of(contest, seed=1)} != {pair.id for pair in pairs_of(contest)}


def test_images_that_were_drawn_again_are_another_pair(tmp_path):
    first = pairs_of(read_contest([write_sweep(tmp_path, seeds=(0,))]), count=100)
    changed = tmp_path / "snr_gamma-1_seed-0/images/01234567/step-000200/00004-0.png"
    other = changed.with_name("00005-0.png").read_bytes()
    changed.write_bytes(other)
    again = pairs_of(read_contest([tmp_path]), count=100)
    different = {pair.id for pair in first} ^ {pair.id for pair in again}
    assert {pair.prompt for pair in (*first, *again) if pair.id in different} == {4}
