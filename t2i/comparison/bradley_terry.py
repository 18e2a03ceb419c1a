"""The order in which people like several variants, from votes on pairs of them (Bradley & Terry 1952).

    P(a is chosen, not b) = 1 / (1 + exp(θ_b − θ_a)),  Σ θ = 0

A tie counts as half a win for both, as in the ratings of Chatbot Arena (Chiang et al. 2024). θ maximises the
likelihood, but its variance is not that of independent votes: it is that of Σ H⁻¹·x·(y − P) over the votes, where
judges, training seeds and prompts are random (`crossed.py`). Half a tie is added for every pair that was judged, so
that a variant which won all its votes is not infinitely good.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from t2i.comparison.crossed import spread

ADDED = 0.5  # ties, for each pair of variants that was judged


@dataclass(frozen=True)
class Lead:
    """The difference of two variants' strengths, in log-odds: expit of it is the rate of the first one's wins."""

    estimate: float
    low: float  # 95 % interval
    high: float
    p: float  # two-sided, of the hypothesis that there is no difference

    @property
    def as_rate(self) -> tuple[float, float, float]:
        """Estimate and interval as the first one's win rate."""
        rate, low, high = expit([self.estimate, self.low, self.high]).tolist()
        return rate, low, high


@dataclass(frozen=True)
class Strengths:
    """The fitted model of N votes on V variants."""

    theta: np.ndarray  # [V]
    sensitivity: np.ndarray  # how θ moves with each vote, [N, V]
    residual: np.ndarray  # [N]
    factors: tuple[np.ndarray, ...]

    def lead(self, first: int, second: int) -> Lead:
        weight = self.sensitivity[:, first] - self.sensitivity[:, second]
        difference = float(self.theta[first] - self.theta[second])
        known = spread(weight * self.residual, weight, self.factors)
        if not np.isfinite(known.variance):
            return Lead(difference, -np.inf, np.inf, 1.0)
        error = np.sqrt(known.variance)
        half = known.critical * error
        return Lead(difference, difference - half, difference + half, known.p(difference / error))


def fit(first: np.ndarray, second: np.ndarray, won: np.ndarray, factors: Sequence[np.ndarray]) -> Strengths:
    """Fit the strengths of the variants that `first` and `second`, [N], number from 0; all must be connected by votes.

    won: 1 if the first of a vote was chosen, 0 if the second, ½ for a tie, [N]. factors: as for `win_rate`.
    """
    num_votes, num_variants = len(won), int(max(first.max(), second.max())) + 1
    pairs = np.array(sorted({(min(pair), max(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)}))
    x = np.zeros((num_votes + len(pairs), num_variants))
    rows = np.arange(len(x))
    x[rows, np.concatenate([first, pairs[:, 0]])] = 1
    x[rows, np.concatenate([second, pairs[:, 1]])] = -1
    y = np.concatenate([won, np.full(len(pairs), 0.5)])
    weight = np.concatenate([np.ones(num_votes), np.full(len(pairs), ADDED)])
    theta = np.zeros(num_variants)
    for _ in range(50):  # Newton's method; the likelihood is concave
        p = expit(x @ theta)
        inverse = np.linalg.pinv((x * (weight * p * (1 - p))[:, None]).T @ x)
        step = inverse @ (x.T @ (weight * (y - p)))
        theta += step
        if np.abs(step).max() < 1e-10:
            break
    residual = (y - expit(x @ theta))[:num_votes]
    return Strengths(theta, x[:num_votes] @ inverse, residual, tuple(factors))
