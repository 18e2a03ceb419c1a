"""Whether one run is better than another by more than chance: the ratio of their errors, its interval and p-value.

The headline of a run is exp(mean_k log(mean_i e[i, k])), over images i and levels k. Two runs A and B are compared
by the log ratio of their headlines, D = mean_k log(mean_i eA[i, k] / mean_i eB[i, k]), averaged over the seeds s.

Images. The pseudo-values of the jackknife, d[s, i] = N·D − (N − 1)·D without image i, act as N measurements of D
(Tukey 1958; Miller 1974, "The jackknife: a review"). A few images with large errors can make up most of the mean, so
they count as (Σw)² / Σw² images, where w is an image's fraction of the mean (Kish 1965). With one seed this is all, and
the test is Student's t.

Seeds. Every seed is measured on the same images, so both are crossed random effects on d[s, i], and neither may be
left out (Clark 1973, "The language-as-fixed-effect fallacy"; readers and cases in Dorfman, Berbaum & Metz 1992). With
mean squares MS of the two-way table, and a negative image² taken as 0 (Hillis 2007):

    Var(D) = (seed²/S + rest²/(S·N)) + image²/N = MS_seed/(S·N) + (MS_image − MS_rest)/(S·N)

The first term has only S − 1 degrees of freedom. One Student variable with Satterthwaite's degrees of freedom trusts it
too much where it came out small by chance: its interval contains the true difference in as little as 92 % of the cases
with 3 seeds. So p is the mean of the p-values with the degrees of freedom of either term, weighted by the terms'
fractions of the variance, as Cochran & Cox (1950, "Experimental designs") weight critical values. Two seeds say little
about the fraction, and its square root replaces it. For normally distributed tables, whatever the variances, the
interval contains the true difference in 95 to 97 % of the cases with 3 to 10 seeds, and in 95 to 98.6 % with 2: it is
too wide rather than too narrow.

Folds. In K-fold comparisons, the images that a fold holds out are measured by one trained model, so they err together.
The folds take the place of the images then: d[s, f] is the mean of a fold's pseudo-values, with as many degrees of
freedom as folds, less one. Images with a common fold are not counted one by one, whatever their number. All folds share
most of their training images; how much another training set would change the result, no estimate from one set can tell
(Bengio & Grandvalet 2004, "No unbiased estimator of the variance of K-fold cross-validation").

The held-out images must represent those of interest. Where a run gains only on a few images with large errors (d has a
skewness of 2.5), a sample of 64 may lack such images, and the interval of one seed contains the true difference in 93 %
of the cases.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr

from t2i.config import ConfigError

LEVEL = 0.05  # a difference counts if its adjusted p is below this; the intervals are those of 1 − LEVEL = 95 %


@dataclass(frozen=True)
class Difference:
    """The difference between a variant and the baseline.

    Of errors it is relative: -0.018 means that the error is 1.8 % lower. Of scores it is the difference itself.
    """

    estimate: float
    low: float  # 95 % interval
    high: float
    p: float  # two-sided, of the hypothesis that there is no difference
    seeds: int  # runs on each side; with 1, the interval covers these two trained models only, else the variants


def difference(
    errors: np.ndarray, baseline: np.ndarray, mean: str = "geometric", folds: np.ndarray | None = None
) -> Difference:
    """The difference between the mean errors of S runs and those of the baseline's runs with the same seeds.

    errors, baseline: squared errors on N images at K noise levels, [S, N, K].
    mean: the mean over noise levels, after that over images: "geometric" for val/loss, "arithmetic" for val/eps_mse.
    folds: [N], numbers from 0, if each image was measured by the model of a fold. Images of one fold share a model.
    """
    return _relative(infer([table_of(errors, baseline, mean, folds)]))


def gap_difference(held_out: "Sides", train: "Sides", mean: str = "geometric") -> Difference:
    """The difference between the gaps of S runs and the baseline's, a gap being log(held-out / training error).

    The relative difference of the ratios. Held-out and training images are two samples, so the variances of both add;
    the seeds' is that of the difference, as both are measured on one model.
    """
    first, second = table_of(*held_out[:2], mean, held_out[2]), table_of(*train[:2], mean, train[2])
    negated = Table(-second.differences, -second.pseudo, second.units)
    if held_out[2] is None:
        return _relative(infer([first, negated]))
    per_fold = Table(first.differences + negated.differences, first.pseudo + negated.pseudo, first.units)
    return _relative(infer([per_fold]))


Sides = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # the arguments errors, baseline and folds of `difference`


@dataclass(frozen=True)
class Table:
    """Differences on one sample of images: of each seed, [S]; their pseudo-values by image or fold, [S, N].

    Those of errors are log ratios.
    """

    differences: np.ndarray
    pseudo: np.ndarray
    units: float  # as how many images, or folds, they count


def table_of(errors: np.ndarray, baseline: np.ndarray, mean: str, folds: np.ndarray | None) -> Table:
    """The differences that `difference` tests; its arguments are the same."""
    _check(errors, baseline, mean)
    if mean == "arithmetic":
        errors, baseline = errors.mean(-1, keepdims=True), baseline.mean(-1, keepdims=True)
    log_ratios, pseudo = _jackknife(errors, baseline)
    if folds is not None:
        return Table(log_ratios, _fold_values(pseudo, folds), folds.max() + 1)
    return Table(log_ratios, pseudo, _effective_images(errors, baseline))


def infer(tables: Sequence[Table]) -> Difference:
    """Estimate, interval and p-value of the sum of differences over samples of images, measured on the same models."""
    d, num_seeds = float(sum(table.differences.mean() for table in tables)), len(tables[0].differences)
    by_seed = np.sum([table.pseudo.mean(1) for table in tables], axis=0)
    seed_variance = by_seed.var(ddof=1) / num_seeds if num_seeds > 1 else 0.0
    image_variances = [image_variance(table.pseudo) for table in tables]
    image_dof = _total_dof(image_variances, [max(table.units - 1, 1) for table in tables])
    standard_error = math.sqrt(seed_variance + sum(image_variances))
    if standard_error == 0:  # all seeds and images agree
        return Difference(d, d, d, p=float(d == 0), seeds=num_seeds)
    seed_dof = max(num_seeds - 1, 1)
    weight = seed_weight(seed_variance / standard_error**2, seed_dof)
    half = standard_error * critical_value(weight, seed_dof, image_dof)
    p = two_sided(abs(d) / standard_error, weight, seed_dof, image_dof)
    return Difference(d, d - half, d + half, float(p), num_seeds)


def seed_weight(fraction: Any, seed_dof: float) -> Any:
    """The weight of the seeds' degrees of freedom, from the seeds' fraction of the variance."""
    return fraction ** min(1, seed_dof / 2)


def two_sided(t: Any, weight: Any, seed_dof: float, image_dof: float) -> Any:
    """The p-value of the test for t = estimate / standard error."""
    return 2 * (weight * stdtr(seed_dof, -t) + (1 - weight) * stdtr(image_dof, -t))


def critical_value(weight: float, seed_dof: float, image_dof: float, level: float = LEVEL) -> float:
    """The t of which p is `level`."""
    highest = 13.0  # 12.7 at one degree of freedom
    while two_sided(highest, weight, seed_dof, image_dof) > level:
        highest *= 2
    t: Any = brentq(lambda t: two_sided(t, weight, seed_dof, image_dof) - level, 0, highest)
    return t


def _relative(logarithmic: Difference) -> Difference:
    """The relative difference that a log ratio is."""
    bounds = (logarithmic.estimate, logarithmic.low, logarithmic.high)
    estimate, low, high = np.expm1(bounds).tolist()
    return replace(logarithmic, estimate=estimate, low=low, high=high)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """The p-values of m comparisons, adjusted so that at most 5 % of such families have any false alarm below 0.05.

    The smallest is multiplied by m, the next by m − 1, ..., and each is at least the one before (Holm 1979).
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def _check(errors: np.ndarray, baseline: np.ndarray, mean: str) -> None:
    assert mean in ("geometric", "arithmetic")
    if errors.ndim != 3 or errors.shape != baseline.shape:
        raise ValueError(
            f"errors of shape {errors.shape} and {baseline.shape} can't be paired; "
            "both sides need the same seeds, images and noise levels: [S, N, K]"
        )
    if errors.shape[1] < 2:
        raise ConfigError("validation.items=1 can't tell a difference from chance; compare runs that have at least 2")
    if not (np.isfinite([errors, baseline]).all() and min(errors.min(), baseline.min()) > 0):
        raise ConfigError("squared errors must be positive and finite; a run that diverged can't be compared")


def _jackknife(errors: np.ndarray, baseline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log ratio of each seed, [S], and its pseudo-values, [S, N]."""
    num_images = errors.shape[1]
    total, total_baseline = errors.sum(1, keepdims=True), baseline.sum(1, keepdims=True)
    complete = np.log(total / total_baseline).mean(-1)
    without_one = np.log((total - errors) / (total_baseline - baseline)).mean(-1)
    return complete[:, 0], num_images * complete - (num_images - 1) * without_one


def log_headline(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log(headline) of S runs, [S], and its pseudo-values over the images, [S, N]; those of a difference subtract.

    errors: [S, N, K].
    """
    return _jackknife(errors, np.full_like(errors, 1 / errors.shape[1]))


def pseudo_by_level(errors: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Pseudo-values of the log ratio at each level, [S, N, K], whose means over the levels are those of a table."""
    num_images = errors.shape[1]
    total, total_baseline = errors.sum(1, keepdims=True), baseline.sum(1, keepdims=True)
    without_one = np.log((total - errors) / (total_baseline - baseline))
    return num_images * np.log(total / total_baseline) - (num_images - 1) * without_one


def _total_dof(variances: Sequence[float], dof: Sequence[float]) -> float:
    """Satterthwaite's degrees of freedom of a sum of variances."""
    total = sum(variances)
    if len(dof) == 1 or total == 0:
        return dof[0]
    return total**2 / sum(variance**2 / own for variance, own in zip(variances, dof, strict=True))


def image_variance(pseudo: np.ndarray) -> float:
    """The second term of Var(D), that of the images, for a table of pseudo-values, [S, N]."""
    num_seeds, num_images = pseudo.shape
    by_seed, by_image = pseudo.mean(1), pseudo.mean(0)
    image = by_image.var(ddof=1) / num_images
    if num_seeds == 1:
        return image
    rest = pseudo - by_seed[:, None] - by_image + pseudo.mean()
    rest_mean_square = np.square(rest).sum() / ((num_seeds - 1) * (num_images - 1))
    return max(image - rest_mean_square / pseudo.size, 0.0)


def _fold_values(pseudo: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """One value for each fold, [S, F], whose mean is that of the images' pseudo-values, [S, N]."""
    center = pseudo.mean(1, keepdims=True)
    sums = np.stack([np.bincount(folds, row) for row in pseudo - center])
    return center + sums * sums.shape[1] / len(folds)


def _effective_images(errors: np.ndarray, baseline: np.ndarray) -> float:
    """Kish's (Σw)² / Σw², where w is an image's fraction of the mean errors."""
    return kish(np.sum([(e / e.mean(1, keepdims=True)).mean((0, 2)) for e in (errors, baseline)], axis=0))


def kish(weights: np.ndarray) -> float:
    """As how many equal weights these count, (Σw)² / Σw²."""
    return float(weights.sum() ** 2 / np.square(weights).sum())
