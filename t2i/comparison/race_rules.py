"""When a race may stop a setting, or end: bounds that hold although one looks after every round.

A race compares M settings, each with the same seeds, at the steps of its rounds. X[m, s] is the log headline (see
t2i.comparison.significance) of setting m and seed s; the difference of settings a and b is the mean over the seeds of
X[a, s] − X[b, s], and its variance has two parts:

    Var = 2·σ²/S + image²/N

image² is estimated for each pair from its pseudo-values, as `compare` does. σ² is the interaction of setting and seed:
how much further apart two runs lie than their settings do. Two seeds of one pair say almost nothing of it, but all M
settings say it together: its estimate is the mean square of the interaction in the table of all settings that ran to
that step, with (M − 1)(S − 1) degrees of freedom if all have S seeds, and when few settings are left, of the rounds
before. Settings at their limit, such as too high a learning rate, can have far noisier runs than the others. The
noisiest is left out of the common estimate while its own mean square is beyond the 99 % quantile of F, and a setting
counts with its own where that is beyond the 90 % quantile.

Bounds. Let b be the truly best setting. A race errs only if the bound of a pair (b, j) fails: by stopping b because j
seems better, or by calling j as good as b. With M settings left there are M − 1 such pairs. Each look that a race may
take, all of which are known when it begins, may spend its part of the risk α (as in group-sequential trials: Pocock
1977; Lan & DeMets 1983), and each of its pairs 1/(M − 1) of that (Bonferroni, as in the selection procedures that Kim &
Nelson 2006 survey). No independence of looks or pairs is assumed, so what a race has seen may decide which looks it
takes. What settings that are out have not used goes to those that are left, as in Maurer & Bretz 2013; the tests
simulate races to see that the risk holds.

Curves. A bound says what is at that step, and the question is what is at the last one. So a setting is stopped, or
called as good as another, only if that holds now and also where the difference keeps changing with every doubling of
the steps by as much as with the last doubling:

    X at the end = X(t) + c·G(t),   G(t) = X(t) − X(t/2),   c = log2(end / t)

This is a linear combination of the same runs, so it has bounds like X itself. Curves that turn later than this are the
risk that a race takes and the full grid does not.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import fdtri

from t2i.comparison.significance import critical_value, image_variance, kish, log_headline, seed_weight
from t2i.config import ConfigError


@dataclass(frozen=True)
class Measurement:
    """A run at the step of a round. Logarithms of val/loss, and their pseudo-values over N images."""

    now: float  # X
    growth: float  # G, the change over the last doubling of the steps
    now_pseudo: np.ndarray  # [N]
    growth_pseudo: np.ndarray  # [N]
    weights: np.ndarray  # of the images in the mean error, [N]

    @classmethod
    def of(cls, errors: np.ndarray, earlier: np.ndarray, doublings: float = 1.0) -> "Measurement":
        """errors, earlier: at the step, and at one that lies so many doublings before: [N, K], at K noise levels.

        Raises ConfigError if they can't be compared.
        """
        if errors.shape != earlier.shape or not all(np.isfinite(e).all() and (e > 0).all() for e in (errors, earlier)):
            raise ConfigError("the run has diverged: its errors are not positive and finite")
        x, pseudo = log_headline(np.stack([errors, earlier]))
        growth, growth_pseudo = (x[0] - x[1]) / doublings, (pseudo[0] - pseudo[1]) / doublings
        return cls(float(x[0]), float(growth), pseudo[0], growth_pseudo, (errors / errors.mean(0)).mean(1))


OUTLIER = 0.99  # quantile of F beyond which a setting's mean square does not belong to the common one
NOISIER = 0.9  # the same, beyond which a setting counts with its own
OUT = 1e-4  # weight of such a setting's runs in the fit; where none else has a seed, they alone tell its effect
Runs = list[Measurement]  # of one setting, by seed


@dataclass(frozen=True)
class Bounds:
    """How much worse a setting is than another, as a log ratio: an estimate and one-sided bounds."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedNoise:
    """The interaction of setting and seed in a table of runs."""

    own: dict[str, float]  # setting -> its own mean square
    own_dof: dict[str, int]
    sum_of_squares: float  # of the settings that are alike
    dof: int

    @classmethod
    def of(cls, table: Mapping[str, Runs], doublings: float) -> "SeedNoise":
        """table: settings with the same first seeds; some may have further ones. doublings: as in `bounds`."""
        dof = np.array([len(runs) - 1 for runs in table.values()])
        row = np.repeat(np.arange(len(table)), dof + 1)  # of each run in the table
        column = np.concatenate([np.arange(number + 1) for number in dof])
        x = np.array([run.now + doublings * run.growth for runs in table.values() for run in runs])
        alike = np.ones(len(table), dtype=bool)

        def mean_squares(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            residuals, free = _additive_fit(x, row, column, np.where(kept, 1, OUT)[row])
            return np.bincount(row, residuals**2), np.bincount(row, free)

        sums, free = mean_squares(alike)
        while alike.sum() > 2:
            noisiest = np.where(alike, sums / free, -1).argmax()
            others = alike & (np.arange(len(table)) != noisiest)
            of_others, free_of_others = mean_squares(others)
            outlier = fdtri(dof[noisiest], max(dof[others].sum() - dof[others].max(), dof[noisiest]), OUTLIER)
            common = of_others[others].sum() / free_of_others[others].sum()
            if of_others[noisiest] / free_of_others[noisiest] <= outlier * common:
                break
            alike, sums, free = others, of_others, free_of_others
        own = dict(zip(table, (sums / free).tolist(), strict=True))
        own_dof = dict(zip(table, dof.tolist(), strict=True))
        return cls(own, own_dof, float(sums[alike].sum()), int(dof[alike].sum() - dof[alike].max()))

    def pooled(self, earlier: Iterable["SeedNoise"]) -> "SeedNoise":
        """Averaged with other rounds, if one of them knows more.

        They see the same runs, so together they have the degrees of freedom of the one that has most.
        """
        rounds = [self, *earlier]
        dof = max(noise.dof for noise in rounds)
        if self.dof == dof:
            return self
        mean_square = sum(noise.sum_of_squares for noise in rounds) / sum(noise.dof for noise in rounds)
        return replace(self, sum_of_squares=mean_square * dof, dof=dof)

    def variance(self, setting: str) -> float:
        """Of one run of the setting."""
        common = self.sum_of_squares / self.dof
        own = self.own[setting]
        return own if own > common * fdtri(self.own_dof[setting], self.dof, NOISIER) else common


def _additive_fit(
    x: np.ndarray, row: np.ndarray, column: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of row + column effects fitted to the cells of a table, and 1 − the leverage of each.

    Cells may be missing. The expected square of a residual is the variance · (1 − leverage).
    """
    root = np.sqrt(weights)[:, None]
    effects = np.concatenate([np.eye(row.max() + 1)[row], np.eye(column.max() + 1)[column]], axis=1)
    inverse = np.linalg.pinv(root * effects, rcond=1e-9)
    return x - effects @ (inverse @ (root[:, 0] * x)), 1 - np.sum(root * effects * inverse.T, axis=1)


def bounds(
    table: Mapping[str, Runs], setting: str, leader: str, noise: SeedNoise, level: float, doublings: float
) -> Bounds:
    """How much worse `setting` will be than `leader` after so many doublings of the steps; 0 means now.

    level: probability that a bound fails, for each of the two.
    """
    pairs = list(zip(table[setting], table[leader], strict=True))
    d = np.array([(a.now - b.now) + doublings * (a.growth - b.growth) for a, b in pairs])
    pseudo = np.stack(
        [(a.now_pseudo - b.now_pseudo) + doublings * (a.growth_pseudo - b.growth_pseudo) for a, b in pairs]
    )
    seed_variance = (noise.variance(setting) + noise.variance(leader)) / len(d)
    units = kish(np.mean([run.weights for pair in pairs for run in pair], axis=0))
    standard_error = math.sqrt(seed_variance + image_variance(pseudo))
    weight = seed_weight(seed_variance / standard_error**2, noise.dof) if standard_error else 0.0
    half = standard_error * critical_value(weight, noise.dof, max(units - 1, 1), 2 * level)
    estimate = float(d.mean())
    return Bounds(estimate, estimate - half, estimate + half)
