"""Distributions over timesteps: how often each one is trained.

A distribution is used through its quantile function, which turns a uniform number u in [0, 1) into a timestep. Every
example has its own u, so a distribution needs no random state, and stratifying a batch means spreading the u.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from t2i.config import ConfigError


class Distribution:
    """A distribution over the timesteps 0 (nearly clean) to num_timesteps − 1 (nearly noise)."""

    def probabilities(self, num_timesteps: int) -> np.ndarray:
        """Probability of each timestep, [num_timesteps]."""
        raise NotImplementedError

    def quantile(self, u: np.ndarray, num_timesteps: int) -> np.ndarray:
        """Timesteps [B], integers in [0, num_timesteps), for u [B] in [0, 1)."""
        cumulative = np.cumsum(self.probabilities(num_timesteps))
        return np.searchsorted(cumulative / cumulative[-1], u, side="right").clip(max=num_timesteps - 1)

    def time(self, u: np.ndarray, num_timesteps: int) -> np.ndarray:
        """Times [B], real numbers from 0 to num_timesteps, for u [B] in [0, 1).

        Here they are evenly distributed between a timestep and the next.
        """
        cumulative = np.cumsum(self.probabilities(num_timesteps))
        return np.interp(u, np.concatenate([[0.0], cumulative / cumulative[-1]]), np.arange(num_timesteps + 1))

    def spread(self, u: np.ndarray, positions: Sequence[int]) -> np.ndarray:
        """The u [B] of the examples at these positions of the training order, spread over their optimizer step."""
        return u


class Uniform(Distribution):
    """Every timestep equally often (Ho et al. 2020, algorithm 1)."""

    def probabilities(self, num_timesteps: int) -> np.ndarray:
        return np.full(num_timesteps, 1 / num_timesteps)

    def quantile(self, u: np.ndarray, num_timesteps: int) -> np.ndarray:
        return np.minimum((u * num_timesteps).astype(np.int64), num_timesteps - 1)


@dataclass(kw_only=True)
class LogitNormal(Distribution):
    """logit(t / T) ~ Normal(mean, std²) (Esser et al. 2024, arXiv 2403.03206, section 3.1)."""

    mean: float
    std: float

    def __post_init__(self):
        if not self.std > 0:
            raise ConfigError(f"timesteps.std={self.std} must be positive; the paper uses 1")

    def probabilities(self, num_timesteps: int) -> np.ndarray:
        edges = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64).logit()
        return torch.special.ndtr((edges - self.mean) / self.std).diff().numpy()

    def time(self, u: np.ndarray, num_timesteps: int) -> np.ndarray:
        logit = self.mean + self.std * torch.special.ndtri(torch.from_numpy(u))
        return num_timesteps * logit.sigmoid().numpy()


@dataclass(kw_only=True)
class Mode(Distribution):
    """t / T = 1 − v − scale · (cos²(πv/2) − 1 + v) for a uniform v (Esser et al. 2024, section 3.1).

    A positive scale favours the middle, a negative one the ends; 0 is the uniform distribution.
    """

    scale: float

    def __post_init__(self):
        if not -1 <= self.scale <= 2 / (np.pi - 2):
            raise ConfigError(
                f"timesteps.scale={self.scale} must be between -1 and 2 / (pi - 2) = 1.75, beyond which times would "
                "lie outside of the schedule; the paper uses 1.29"
            )

    def time(self, u: np.ndarray, num_timesteps: int) -> np.ndarray:
        return num_timesteps * (u + self.scale * (u - np.sin(np.pi * u / 2) ** 2))  # v = 1 − u, so that it rises

    def probabilities(self, num_timesteps: int) -> np.ndarray:
        low, high = np.zeros(num_timesteps - 1), np.ones(num_timesteps - 1)
        edges = np.arange(1, num_timesteps)
        for _ in range(60):  # bisection: `time` has no inverse in closed form
            middle = (low + high) / 2
            below = self.time(middle, num_timesteps) < edges
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.diff(np.concatenate([[0.0], high, [1.0]]))


@dataclass(kw_only=True)
class Shifted(Distribution):
    """t / T = s·u / (1 + (s − 1)·u) for a uniform u: the times of a flow that is shifted by s (Esser et al. 2024)."""

    shift: float

    def __post_init__(self):
        if not self.shift > 0:
            raise ConfigError(f"timesteps.shift={self.shift} must be positive; 1 is the uniform distribution")

    def time(self, u: np.ndarray, num_timesteps: int) -> np.ndarray:
        return num_timesteps * self.shift * u / (1 + (self.shift - 1) * u)

    def probabilities(self, num_timesteps: int) -> np.ndarray:
        edges = np.linspace(0, 1, num_timesteps + 1)
        return np.diff(edges / (self.shift + (1 - self.shift) * edges))


STRATEGIES = ("earlier", "later", "range", "none")


@dataclass(kw_only=True)
class Biased(Distribution):
    """Some timesteps are drawn `multiplier` times as often as the others (train_text_to_image_sdxl.py of Diffusers).

    strategy: earlier and later favour a `portion` of the timesteps, at the clean or at the noisy end; range favours
    begin ≤ t < end; none favours none.
    """

    strategy: str
    multiplier: float
    portion: float
    begin: int
    end: int

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"timesteps.strategy={self.strategy} is not known; choose from {', '.join(STRATEGIES)}")
        if not self.multiplier > 0:
            raise ConfigError(f"timesteps.multiplier={self.multiplier} must be positive; 1 means no bias")
        if not 0 <= self.portion <= 1:
            raise ConfigError(
                f"timesteps.portion={self.portion} must be a fraction of the timesteps, between 0 and 1; the script's "
                "default is 0.25"
            )
        if not 0 <= self.begin < self.end:
            raise ConfigError(f"timesteps.begin={self.begin} must be at least 0 and below timesteps.end={self.end}")

    def probabilities(self, num_timesteps: int) -> np.ndarray:
        if self.strategy == "range" and self.end > num_timesteps:
            raise ConfigError(f"timesteps.end={self.end} is beyond the last timestep; use at most {num_timesteps}")
        count = int(self.portion * num_timesteps)
        begin, end = {
            "earlier": (0, count),
            "later": (num_timesteps - count, num_timesteps),
            "range": (self.begin, self.end),
            "none": (0, 0),
        }[self.strategy]
        weights = np.ones(num_timesteps)
        weights[begin:end] *= self.multiplier
        return weights / weights.sum()


@dataclass(kw_only=True)
class Stratified(Distribution):
    """Each example of an optimizer step draws from its own 1/batch_size of a distribution (cf. Kingma et al. 2021).

    Every timestep comes as often as without strata, but those of one step are spread evenly.
    """

    distribution: Distribution
    batch_size: int

    def probabilities(self, num_timesteps: int) -> np.ndarray:
        return self.distribution.probabilities(num_timesteps)

    def quantile(self, u: np.ndarray, num_timesteps: int) -> np.ndarray:
        return self.distribution.quantile(u, num_timesteps)

    def time(self, u: np.ndarray, num_timesteps: int) -> np.ndarray:
        return self.distribution.time(u, num_timesteps)

    def spread(self, u: np.ndarray, positions: Sequence[int]) -> np.ndarray:
        slot = np.asarray(positions) % self.batch_size
        return np.minimum((slot + u) / self.batch_size, np.nextafter(1, 0))


@dataclass
class Continuous(Distribution):
    """A distribution of which real times are drawn instead of timesteps, for a flow in continuous time."""

    distribution: Distribution

    def probabilities(self, num_timesteps: int) -> np.ndarray:
        return self.distribution.probabilities(num_timesteps)

    def quantile(self, u: np.ndarray, num_timesteps: int) -> np.ndarray:
        """Times [B] in float32, below num_timesteps also where float32 would round up to it."""
        below = np.nextafter(np.float32(num_timesteps), np.float32(0))
        return np.minimum(self.distribution.time(u, num_timesteps).astype(np.float32), below)

    def spread(self, u: np.ndarray, positions: Sequence[int]) -> np.ndarray:
        return self.distribution.spread(u, positions)
