"""Win rates of simulated judges whose opinion is known, and identities."""

import numpy as np
import pytest
from helpers.votes import simulate, true_rate
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i.comparison.preferences import NARROW, win_rate
from t2i.comparison.significance import holm

EQUAL, BETTER = np.zeros(2), np.array([0.7, 0.0])


def coverage(utilities, repetitions=1000, **kinds):
    """Fraction of intervals of 95 % that contain the true rate."""
    rng, truth = np.random.default_rng(0), true_rate(utilities, **{k: kinds[k] for k in kinds if k in TRUE})
    rates = [
        win_rate(votes.won, votes.factors) for votes in (simulate(rng, utilities, **kinds) for _ in range(repetitions))
    ]
    return np.mean([rate.low <= truth <= rate.high for rate in rates])


TRUE = ("judges", "seeds", "spread")


def test_the_true_rate_of_the_simulation_is_that_of_many_votes():
    rng = np.random.default_rng(0)
    votes = simulate(rng, BETTER, judges=300, prompts=300, seeds=1, votes=300)
    assert votes.won.mean() == pytest.approx(true_rate(BETTER, judges=300), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("utilities", [EQUAL, BETTER], ids=["equal", "better"])
@pytest.mark.parametrize(
    "kinds",
    [
        {"judges": 3},
        {"judges": 5},
        {"judges": 5, "shared": False},
        {"judges": 4, "spread": 0.7},
        {"judges": 5, "seeds": 3, "votes": 60},
        {"judges": 1},
    ],
    ids=str,
)
def test_the_interval_covers_other_judges_and_prompts(kinds, utilities):
    assert 0.93 <= coverage(utilities, **kinds) <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [{"judges": 2}, {"judges": 2, "seeds": 3, "votes": 60}, {"judges": 3, "spread": 0.1}])
def test_few_judges_or_judges_of_one_opinion_make_the_interval_wider_rather_than_narrower(kinds):
    assert 0.94 <= coverage(BETTER, **kinds) <= 0.999


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [{"judges": 2}, {"judges": 3}, {"judges": 5, "seeds": 3}, {"judges": 2, "seeds": 2}, {"judges": 1}],
    ids=str,
)
def test_at_most_5_percent_of_families_of_six_variants_like_their_baseline_seem_preferred(kinds):
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(500):
        votes = simulate(rng, np.zeros(7), votes=420, **kinds)  # 20 on each of the 21 pairs, by each judge
        against = [votes.take((votes.first == 0) & (votes.second == variant)) for variant in range(1, 7)]
        alarms += holm([win_rate(each.won, each.factors).p for each in against]).min() < 0.05
    assert alarms <= 25


def test_ties_count_half():
    votes = simulate(np.random.default_rng(0), BETTER)
    wins, ties = (votes.won == 1).sum(), (votes.won == 0.5).sum()
    assert win_rate(votes.won, votes.factors).estimate == pytest.approx((wins + ties / 2) / len(votes.won))


def test_exchanging_the_sides_mirrors_the_interval():
    votes = simulate(np.random.default_rng(0), BETTER, seeds=2)
    there, back = win_rate(votes.won, votes.factors), win_rate(1 - votes.won, votes.factors)
    assert (back.estimate, back.low, back.high) == pytest.approx((1 - there.estimate, 1 - there.high, 1 - there.low))
    assert back.p == pytest.approx(there.p)


@settings(deadline=None)
@given(better=st.floats(-2, 2), judges=st.integers(1, 4), seeds=st.integers(1, 3), draw=st.integers(0, 1000))
def test_p_is_below_5_percent_where_the_interval_leaves_out_50_percent(better, judges, seeds, draw):
    votes = simulate(np.random.default_rng(draw), np.array([better, 0]), judges=judges, seeds=seeds, votes=12)
    rate = win_rate(votes.won, votes.factors)
    assert 0 <= rate.low <= rate.estimate <= rate.high <= 1
    assert 0 <= rate.p <= 1
    if abs(rate.p - 0.05) > 1e-6:
        assert (rate.p < 0.05) == (not rate.low <= 0.5 <= rate.high)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("result", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("judges", [1, 2])
def test_unanimous_votes_leave_some_doubt(result, judges):
    won, prompt = np.full(10, result), np.arange(10) % (10 // judges)
    rate = win_rate(won, (np.arange(10) * judges // 10, np.zeros(10, dtype=int), prompt))
    assert 0.05 < rate.high - rate.low < 1
    assert (rate.p < 0.05) == (result != 0.5 and judges == 1) or judges == 2


@pytest.mark.parametrize("votes", [1, 3])
def test_votes_of_one_judge_on_one_prompt_say_nothing_of_others(votes):
    zeros = np.zeros(votes, dtype=int)
    rate = win_rate(np.ones(votes), (zeros, zeros, zeros))
    assert (rate.low, rate.high, rate.p) == (0, 1, 1)


def test_as_many_more_votes_as_it_says_leave_out_50_percent():
    """Twenty votes of one judge, 13 of them won, each on a prompt of its own."""

    def judged(votes):
        won = (np.arange(votes) * 13) % 20 < 13
        return win_rate(won.astype(float), (np.zeros(votes), np.zeros(votes), np.arange(votes)))

    more, half = judged(20).more_votes()
    assert half is None
    enough, fewer = judged(20 * round((20 + more) / 20 * 1.1)), judged(20 * round((20 + more) / 20 * 0.7))
    assert enough.p < 0.05 < fewer.p
    assert enough.more_votes() == (0, None)


def test_a_rate_of_50_percent_is_told_how_many_votes_make_its_interval_narrow():
    won = np.tile([0.0, 1.0], 20)
    more, half = win_rate(won, (np.zeros(40), np.zeros(40), np.arange(40))).more_votes()
    assert half == NARROW
    many = np.resize(won, 40 + more)
    rate = win_rate(many, (np.zeros(len(many)), np.zeros(len(many)), np.arange(len(many))))
    assert (rate.high - rate.low) / 2 == pytest.approx(NARROW, rel=0.1)
