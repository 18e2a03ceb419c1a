"""Which timesteps are trained how often.

A distribution over timesteps is written as its quantile function: it turns a uniform number u in [0, 1) into a timestep.
Every example brings its own u, so the distribution needs no random state, and stratifying the batch means spreading the u.
"""

import numpy as np


class Uniform:
    """Every timestep equally often (Ho et al. 2020, algorithm 1)."""

    def quantile(self, u: np.ndarray, num_timesteps: int) -> np.ndarray:
        """Timesteps [B], integers in [0, num_timesteps), for u [B] in [0, 1)."""
        return np.minimum((u * num_timesteps).astype(np.int64), num_timesteps - 1)

    def probabilities(self, num_timesteps: int) -> np.ndarray:
        """Probability of each timestep, [num_timesteps]."""
        return np.full(num_timesteps, 1 / num_timesteps)
