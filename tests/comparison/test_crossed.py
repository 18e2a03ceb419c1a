"""The variance of votes that share judges, seeds and prompts: identities, and simulations whose variance is known."""

import numpy as np
import pytest
import scipy.stats

from t2i.comparison.crossed import _terms, spread
from t2i.comparison.significance import image_variance


def table(rng, judges=4, prompts=12):
    """A complete table of measurements, [J, P], and the levels of its cells."""
    values = (
        rng.standard_normal((judges, 1)) + rng.standard_normal((1, prompts)) + rng.standard_normal((judges, prompts))
    )
    judge, prompt = (index.ravel() for index in np.indices(values.shape))
    return values, judge, prompt


def of_mean(values, *factors):
    values = values.ravel()
    return spread((values - values.mean()) / len(values), np.full(len(values), 1 / len(values)), factors)


def test_where_all_judges_see_all_prompts_it_is_the_analysis_of_variance():
    """That of seeds and images in significance.py."""
    values, judge, prompt = table(np.random.default_rng(0))
    known = of_mean(values, judge, prompt)
    of_judges = values.mean(1).var(ddof=1) / len(values)
    assert known.variance == pytest.approx(of_judges + image_variance(values))
    assert known.dofs == pytest.approx([3, 11])
    assert known.fractions.sum() == pytest.approx(1)


def test_with_one_judge_it_is_student_s_t():
    values = np.random.default_rng(0).standard_normal(15)
    known = of_mean(values, np.zeros(15, dtype=int), np.arange(15))
    half = known.critical * np.sqrt(known.variance)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert (values.mean() - half, values.mean() + half) == pytest.approx(expected)


def test_names_and_order_of_the_levels_do_not_matter():
    values, judge, prompt = table(np.random.default_rng(0))
    shuffled = np.random.default_rng(1).permutation(values.size)
    known = of_mean(values.ravel()[shuffled], 7 - judge[shuffled], 100 * prompt[shuffled])
    assert known.variance == pytest.approx(of_mean(values, judge, prompt).variance)


@pytest.mark.slow
@pytest.mark.parametrize("design", ["unequal", "other prompts"])
def test_the_variance_is_that_of_repetitions_where_judges_see_different_things(design):
    """3 judges, 2 training seeds, 8 prompts; the images of a prompt and seed are the same for all judges.

    Of judges with 30, 12 and 6 votes it is a tenth too small, as their mean is subtracted before.
    """
    rng = np.random.default_rng(0)
    judge = np.repeat(np.arange(3), {"unequal": (30, 12, 6), "other prompts": (16, 16, 16)}[design])
    seed, prompt = rng.integers(0, 2, 48), rng.integers(0, 8, 48)
    means, variances = [], []
    for _ in range(2000):
        values = rng.standard_normal(3)[judge] + rng.standard_normal(2)[seed] + rng.standard_normal(8)[prompt]
        values = values + 2 * rng.standard_normal((2, 8))[seed, prompt] + rng.standard_normal(48)
        means.append(values.mean())
        influence = (values - values.mean()) / 48
        variances.append(_terms(influence, np.full(48, 1 / 48), [judge, seed, prompt]).sum())
    assert 0.85 <= np.mean(variances) / np.var(means) <= 1.1


def test_votes_are_never_more_certain_than_independent_ones():
    """Judges that contradict each other on every prompt make the estimated covariances negative."""
    values = np.array([[1.0, 0.0] * 5, [0.0, 1.0] * 5])
    judge, prompt = (index.ravel() for index in np.indices(values.shape))
    assert of_mean(values, judge, prompt).variance >= values.var(ddof=1) / values.size


def test_judges_without_a_prompt_or_judge_in_common_with_another_say_nothing_of_the_variance():
    values, level = np.array([1.0, 0.0, 1.0]), np.array([0, 1, 2])
    shared = of_mean(values, np.array([0, 0, 1]), np.array([0, 1, 0]))
    assert not np.isfinite(shared.variance) or shared.variance > 0
    assert of_mean(values, level, level).variance == pytest.approx(values.var(ddof=1) / 3)
