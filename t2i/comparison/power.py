"""The power of the comparison's test: how often it finds a difference of some size, and what that takes.

The test is that of `significance.infer`. For normally distributed pseudo-values its mean squares are independent of
the estimate and of each other, so the power is a mean over them, here over points that fill their distributions evenly.

A pilot knows the variances roughly: of 3 seeds, the seeds' mean square has 2 degrees of freedom. Planned as if it were
exact, the power reached would be far below the wanted one as often as not. So the power computed here is the mean over
the variances that fit the pilot, which are its mean squares · dof / χ² (fiducial inference: Fisher 1935; Weerahandi
1993, "Generalized confidence intervals"). Then the power reached has the wanted mean over pilots, as simulations show
(tests/comparison/test_power.py): where seeds matter. Where they don't, no pilot of few seeds can know it, and the
numbers are too large rather than too small: a plan for no seed variance reaches what is wanted, none is smaller, and
some are larger. Draws without seed variance count double; if they counted more, plans would be too small where seeds
matter.

Noise levels. More of them measure an image with more draws of the noise. What depends smoothly on the log-SNR is
integrated well by a few. So only the variance that second differences along the levels show (Gasser, Sroka &
Jennen-Steinmetz 1986) is taken to fall as 1/K.
"""

from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
from scipy.special import betaln, gammaincinv, ndtr, ndtri

from t2i.comparison.significance import LEVEL, Table, seed_weight, two_sided

POINTS = 512
KNOTS = np.linspace(0, 1, 33)  # the roots of weights
NO_SEEDS = 2.0  # how much draws without seed variance count
POWER = 0.8  # what is wanted where nothing else is said


@dataclass(frozen=True)
class Size:
    """How large a comparison is."""

    seeds: int
    images: int
    levels: int


@dataclass(frozen=True)
class Pilot:
    """What a comparison knows of the variances of its pseudo-values, [S, N]: the mean squares of its table."""

    seed: float  # mean square of the seeds; with one seed all of the variance is in `image`
    image: float
    rest: float
    size: Size
    counted: float  # as how much of an image each counts (Kish 1965)
    image_noise: float = 0.0  # fraction of the images' variance that falls with the number of levels
    rest_noise: float = 0.0  # the same of the rest

    @property
    def dof(self) -> tuple[float, float, float]:
        """Degrees of freedom of the mean squares."""
        seeds, units = self.size.seeds - 1, self.units(self.size.images)
        return max(seeds, 1), units, max(seeds, 1) * units

    def units(self, images: int) -> float:
        """The degrees of freedom that so many images leave."""
        return max(self.counted * images - 1, 1)

    def exact(self) -> "Variances":
        """The variances as if the pilot knew them exactly."""
        return self._variances(np.array(self.seed), np.array(self.image), np.array(self.rest))

    def plausible(self) -> "Variances":
        """Variances that fit the pilot, each [POINTS]."""
        mean_squares = (self.seed, self.image, self.rest)
        of_each = enumerate(zip(mean_squares, self.dof, strict=True))
        drawn = [square / _chi_square(dof, 3 + i) for i, (square, dof) in of_each]
        return self._variances(*drawn)

    def _variances(self, seed: np.ndarray, image: np.ndarray, rest: np.ndarray) -> "Variances":
        if self.size.seeds == 1:
            return Variances(np.zeros_like(image), image, np.zeros_like(image))
        of_seeds = np.maximum(seed - rest, 0) / self.size.images
        credence = np.where(of_seeds > 0, 1.0, NO_SEEDS) if np.ndim(of_seeds) else None
        return Variances(of_seeds, np.maximum(image - rest, 0) / self.size.seeds, rest, credence)


@dataclass(frozen=True)
class Variances:
    """Variance components of the pseudo-values d[s, i]: of seeds, of images, and of the rest."""

    seed: np.ndarray
    image: np.ndarray
    rest: np.ndarray
    credence: np.ndarray | None = None  # weight of each, if they are draws


def pilot_of(table: Table, cells: np.ndarray | None = None) -> Pilot:
    """The mean squares of a comparison. cells: pseudo-values at each level, [S, N, K], if they are to be varied."""
    seeds, images = table.pseudo.shape
    seed, image, rest = _mean_squares(table.pseudo)
    levels = 1 if cells is None else cells.shape[2]
    pilot = Pilot(seed, image, rest, Size(seeds, images, levels), table.units / images)
    if cells is None or levels < 3:
        return pilot
    rough = (cells[..., :-2] - 2 * cells[..., 1:-1] + cells[..., 2:]) / np.sqrt(6)
    squares = np.mean([_mean_squares(rough[..., k])[1:] for k in range(levels - 2)], axis=0) / levels
    image_noise, rest_noise = squares if seeds > 1 else (squares[0], 0.0)
    of_images = max(image - rest, 0)
    return replace(
        pilot,
        image_noise=float(np.clip((image_noise - rest_noise) / of_images, 0, 1)) if of_images else 0.0,
        rest_noise=float(np.clip(rest_noise / rest, 0, 1)) if rest else 0.0,
    )


def _mean_squares(pseudo: np.ndarray) -> tuple[float, float, float]:
    """Those of seeds, images and the rest of a table, [S, N]."""
    seeds, images = pseudo.shape
    by_seed, by_image = pseudo.mean(1), pseudo.mean(0)
    image = seeds * by_image.var(ddof=1)
    if seeds == 1:
        return 0.0, float(image), 0.0
    rest = np.square(pseudo - by_seed[:, None] - by_image + pseudo.mean()).sum() / ((seeds - 1) * (images - 1))
    return float(images * by_seed.var(ddof=1)), float(image), float(rest)


def power(
    pilot: Pilot, size: Size, difference: float, comparisons: int = 1, variances: Variances | None = None
) -> float:
    """The probability that a comparison of this size finds the difference, which is that of log errors.

    comparisons: made at once and corrected by Holm's method; the power is that for one difference among equals.
    variances: default: those that fit the pilot, and the power is the mean over them.
    """
    variances = pilot.plausible() if variances is None else variances
    thinner = pilot.size.levels / size.levels - 1
    rest = variances.rest * (1 + pilot.rest_noise * thinner)
    image = variances.image * (1 + pilot.image_noise * thinner)
    seeds, images, units = size.seeds, size.images, pilot.units(size.images)
    of_seeds = variances.seed / seeds + rest / (seeds * images)  # the two terms of Var(D)
    of_images = image / images
    chi_seed, chi_image, chi_rest = (
        _chi_square(dof, i) for i, dof in enumerate((max(seeds - 1, 1), units, max(seeds - 1, 1) * units))
    )
    rest_term = rest / (seeds * images)
    estimated_seeds = of_seeds * chi_seed if seeds > 1 else np.zeros(1)
    estimated_images = np.maximum((rest_term + of_images) * chi_image - rest_term * chi_rest, 0)
    error = np.sqrt(estimated_seeds + estimated_images)
    weights = seed_weight(
        np.divide(estimated_seeds, error**2, where=error > 0, out=np.ones_like(error)), max(seeds - 1, 1)
    )
    bound = np.interp(np.sqrt(weights), KNOTS, _knots(max(seeds - 1, 1), units, LEVEL / comparisons)) * error
    spread = np.sqrt(of_seeds + of_images)
    spread = np.where(spread > 0, spread, 1e-300)
    found = ndtr((difference - bound) / spread) + ndtr((-difference - bound) / spread)
    return float(np.average(found, weights=variances.credence))


def detectable(pilot: Pilot, size: Size, wanted: float = POWER, comparisons: int = 1) -> float:
    """The difference that a comparison of this size finds with the wanted power; 0 if the pilot saw no variance."""
    variances = pilot.plausible()
    typical = np.sqrt(variances.seed / size.seeds + variances.image / size.images + variances.rest / size.images).mean()
    low, high = 0.0, float(typical)
    while high and power(pilot, size, high, comparisons, variances) < wanted:
        low, high = high, high * 2
    while high - low > 0.005 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(pilot, size, middle, comparisons, variances) >= wanted else (middle, high)
    return high


@cache
def _even(columns: int) -> np.ndarray:
    """Points that fill the unit cube evenly, [columns, POINTS]: Kronecker's sequence of the plastic numbers."""
    root = 2.0
    for _ in range(50):
        root = (1 + root) ** (1 / (columns + 1))
    steps = root ** -np.arange(1.0, columns + 1)
    return (0.5 + steps[:, None] * np.arange(1, POINTS + 1)) % 1


@lru_cache(maxsize=4096)
def _chi_square(dof: float, column: int) -> np.ndarray:
    """χ² / dof, [POINTS], from a column of the points."""
    return gammaincinv(dof / 2, _even(6)[column]) * 2 / dof


@lru_cache(maxsize=4096)
def _knots(seed_dof: float, image_dof: float, level: float) -> np.ndarray:
    """Critical values of the test for the squares of KNOTS as weights, by Newton's method from below."""
    weights, t = KNOTS**2, np.full(len(KNOTS), -ndtri(level / 2))
    for _ in range(40):  # p is convex in t, so no step goes too far
        density = weights * _density(t, seed_dof) + (1 - weights) * _density(t, image_dof)
        t += (two_sided(t, weights, seed_dof, image_dof) - level) / (2 * density)
    return t


def _density(t: np.ndarray, dof: float) -> np.ndarray:
    """Student's."""
    return np.exp(-(dof + 1) / 2 * np.log1p(t**2 / dof) - betaln(dof / 2, 0.5)) / np.sqrt(dof)
