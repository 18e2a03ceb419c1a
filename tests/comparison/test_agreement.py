"""Agreement between judges, by the published example and by hand."""

import numpy as np
import pytest

from t2i.comparison.agreement import agreement, alpha

NONE = np.nan
PUBLISHED = np.array(  # Krippendorff (2011), section C: four observers, twelve units, missing values
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
)


def test_the_published_example():
    """0.849 with the interval metric."""
    unit = np.broadcast_to(np.arange(12), PUBLISHED.shape)
    there = ~np.isnan(PUBLISHED)
    assert alpha(unit[there].tolist(), PUBLISHED[there]) == pytest.approx(0.849, abs=5e-4)


def test_perfect_agreement_is_1_and_chance_is_0():
    rng = np.random.default_rng(0)
    units, values = list(range(5000)), rng.integers(0, 3, 5000) / 2
    assert alpha(units * 2, np.tile(values, 2)) == 1
    assert alpha(units * 2, np.concatenate([values, rng.permutation(values)])) == pytest.approx(0, abs=0.05)


def test_without_a_pair_that_two_judged_there_is_none():
    assert np.isnan(alpha([1, 2, 3], np.array([0.0, 0.5, 1.0])))
    assert agreement([1, 2, 3], np.array([0.0, 0.5, 1.0]))[1] == 0


def test_pairs_of_votes_by_hand():
    """Three judges on unit 1 make three pairs, one of them equal; two on unit 2 make one, which is."""
    assert agreement([1, 1, 1, 2, 2, 3], np.array([1, 1, 0, 0.5, 0.5, 0])) == (0.5, 4)
