"""Simulations of scores of images whose true difference is known, and identities."""

import numpy as np
import pytest
import scipy.stats

from t2i.comparison.score_significance import score_difference, score_interval
from t2i.comparison.significance import holm


def scores(rng, count=2, seeds=1, prompts=64, images=2, spread=0.0, effect=0.02):
    """Scores of images like CLIP's, [count, R, P, S]: prompts differ most; the first variant scores `effect` more.

    A variant, and each training seed of it, has its own effect on a prompt. spread: of the seeds, on all at once.
    """
    values = 0.7 + 0.15 * rng.standard_t(5, (prompts, 1)) + 0.05 * rng.standard_normal((count, seeds, prompts, images))
    values += 0.04 * rng.standard_normal((count, 1, prompts, 1)) + 0.03 * rng.standard_normal(
        (count, seeds, prompts, 1)
    )
    values += spread * rng.standard_normal((count, seeds, 1, 1))
    values[0] += effect
    return values


def score_coverage(**kinds):
    """Fraction of 2,000 intervals of 95 % that contain the true difference."""
    rng = np.random.default_rng(0)
    intervals = [score_difference(*scores(rng, **kinds)) for _ in range(2000)]
    return np.mean([found.low <= 0.02 <= found.high for found in intervals])


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [{}, {"images": 1}, {"prompts": 16}], ids=str)
def test_the_interval_of_scores_covers_other_prompts_and_noise(kinds):
    assert 0.93 <= score_coverage(**kinds) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.005, 0.05])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_of_scores_covers_other_training_seeds(seeds, spread):
    assert 0.93 <= score_coverage(seeds=seeds, spread=spread) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_family_of_six_scores_has_a_false_alarm_in_one_of_twenty(seeds):
    rng, alarms = np.random.default_rng(1), 0
    for _ in range(1000):
        baseline, *others = scores(rng, count=7, seeds=seeds, effect=0.0)
        alarms += holm([score_difference(other, baseline).p for other in others]).min() < 0.05
    assert alarms / 1000 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


def test_equal_scores_of_0_or_1_have_wilson_s_interval():
    low, high = score_interval(np.zeros((20, 2)))
    assert low == 0
    assert high == pytest.approx(1.959964**2 / (20 + 1.959964**2), abs=1e-6)
    assert score_interval(np.ones((20, 2))) == pytest.approx((1 - high, 1))


def test_the_interval_of_a_mean_score_is_student_s():
    values = np.random.default_rng(0).normal(size=(12, 3))
    means = values.mean(1)
    expected = scipy.stats.t.interval(0.95, 11, means.mean(), scipy.stats.sem(means))
    assert score_interval(values) == pytest.approx(expected)
