"""The order of several variants: agreement with a general optimiser, identities, and simulated families."""

import numpy as np
import pytest
from helpers.votes import simulate
from scipy.optimize import minimize
from scipy.special import expit, logit

from t2i.comparison.bradley_terry import ADDED, fit
from t2i.comparison.preferences import win_rate
from t2i.comparison.significance import holm

DIFFERENT = np.array([0.0, 0.8, -0.5, 0.3])


def fitted(votes):
    return fit(votes.first, votes.second, votes.won, votes.factors)


def test_the_strengths_maximise_the_likelihood():
    votes = simulate(np.random.default_rng(0), DIFFERENT, votes=60)

    def loss(theta):
        p = expit(theta[votes.first] - theta[votes.second])
        every = expit(theta[:, None] - theta)[np.triu_indices(4, 1)]
        added = ADDED / 2 * (np.log(every) + np.log(1 - every)).sum()
        return -(votes.won * np.log(p) + (1 - votes.won) * np.log(1 - p)).sum() - added

    found = minimize(loss, np.zeros(4)).x
    assert fitted(votes).theta == pytest.approx(found - found.mean(), abs=1e-3)


def test_of_two_variants_the_lead_is_the_log_odds_of_the_win_rate():
    votes = simulate(np.random.default_rng(0), DIFFERENT[:2], votes=40)
    lead = fitted(votes).lead(0, 1)
    rate = (votes.won.sum() + ADDED / 2) / (len(votes.won) + ADDED)
    assert lead.estimate == pytest.approx(logit(rate))
    assert lead.as_rate[0] == pytest.approx(rate)


def test_exchanging_two_variants_changes_the_sign():
    strengths = fitted(simulate(np.random.default_rng(0), DIFFERENT, votes=60))
    there, back = strengths.lead(1, 2), strengths.lead(2, 1)
    assert (back.estimate, back.low, back.high) == pytest.approx((-there.estimate, -there.high, -there.low))
    assert back.p == pytest.approx(there.p)


def test_a_variant_that_won_everything_is_not_infinitely_good():
    votes = simulate(np.random.default_rng(0), np.array([20.0, 0, 0]), votes=30)
    strengths = fitted(votes)
    assert np.argmax(strengths.theta) == 0
    assert np.isfinite(strengths.theta).all()
    lead = strengths.lead(0, 1)
    assert 0.9 < lead.as_rate[0] < 1


def test_variants_that_never_met_are_compared_by_what_they_met():
    votes = simulate(np.random.default_rng(0), np.array([1.0, 0, -1.0]), judges=5, votes=60)
    apart = votes.take((votes.first != 0) | (votes.second != 2))
    assert fitted(apart).lead(0, 2).estimate > fitted(apart).lead(0, 1).estimate > 0


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [{"judges": 3}, {"judges": 5}, {"judges": 3, "seeds": 3}, {"judges": 1}], ids=str)
def test_at_most_5_percent_of_families_of_six_differences_between_equals_seem_proven(kinds):
    rng, alarms, covered = np.random.default_rng(0), 0, []
    for _ in range(500):
        strengths = fitted(simulate(rng, np.zeros(4), votes=120, **kinds))
        leads = [strengths.lead(i, j) for i in range(4) for j in range(i)]
        alarms += holm([lead.p for lead in leads]).min() < 0.05
        covered += [lead.low <= 0 <= lead.high for lead in leads]
    assert alarms <= 25
    assert 0.94 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("votes", [1, 3])
def test_votes_that_have_nothing_to_be_compared_with_say_nothing(votes):
    """The first one of all; and those of one judge on one prompt of one training seed."""
    same = np.zeros(votes, dtype=int)
    lead = fit(same, same + 1, np.ones(votes), (same, same, same)).lead(0, 1)
    assert (lead.low, lead.high, lead.p) == (-np.inf, np.inf, 1.0)
    rate = win_rate(np.ones(votes), (same, same, same))
    assert (rate.low, rate.high, rate.p) == (0, 1, 1)
