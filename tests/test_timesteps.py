import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from t2i.timesteps import Uniform


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 1000))
def test_quantiles_are_timesteps(u, num_timesteps):
    assert 0 <= Uniform().quantile(np.array([u]), num_timesteps)[0] < num_timesteps


def test_quantiles_follow_the_probabilities():
    """Equally spaced u hit each timestep as often as its probability says."""
    u = (np.arange(50_000) + 0.5) / 50_000
    counts = np.bincount(Uniform().quantile(u, 1000), minlength=1000)
    assert np.allclose(counts / 50_000, Uniform().probabilities(1000))
