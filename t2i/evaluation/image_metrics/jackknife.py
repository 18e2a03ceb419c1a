"""Intervals of metrics of whole sets of images: the jackknife over prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from t2i.config import ConfigError
from t2i.evaluation.image_metrics.metric import Judged, Scores

GROUPS = 100  # more prompts are left out in so many groups (Wolter 2007, Introduction to Variance Estimation, 4.2)
FEWEST = 3  # prompts, and references: two must be left without one


@dataclass(frozen=True)
class Clusters:
    """What is independent of each other: a prompt with all its images and its own reference, or a further reference.

    Prompts of the same reference are one cluster.
    """

    images: np.ndarray  # [P·S], the cluster of each image
    references: np.ndarray  # [M]
    sizes: np.ndarray  # [G], clusters in each group that is left out at a time

    @classmethod
    def of(cls, judged: Judged) -> "Clusters":
        assert judged.references is not None, "a distance of distributions needs references"
        references = np.arange(len(judged.references))
        if judged.reference_of is None:
            of_prompt = np.arange(len(judged.prompts))
            of_reference = len(of_prompt) + references
        else:
            used, of_prompt = np.unique(np.asarray(judged.reference_of), return_inverse=True)
            of_reference = len(used) + references
            of_reference[used] = np.arange(len(used))
        count = of_prompt.max() + 1
        sizes = np.bincount(np.arange(count) % min(count, GROUPS))
        return cls(np.repeat(of_prompt, judged.seeds), of_reference, sizes)

    @property
    def image_groups(self) -> np.ndarray:
        """The group of each image, [P·S]; neighbouring clusters are in different groups."""
        return self.images % len(self.sizes)

    @property
    def reference_groups(self) -> np.ndarray:
        """The group of each reference, [M]; G for one of no prompt, which is never left out."""
        groups = self.references % len(self.sizes)
        return np.where(self.references < self.sizes.sum(), groups, len(self.sizes))


def pairing(judged: Judged) -> str:
    """Which reference belongs to which prompt."""
    return repr(None if judged.reference_of is None else [int(index) for index in judged.reference_of])


def pseudo_values(value: float, left_out: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The jackknife's pseudo-values (Tukey 1958; for groups of unequal size, Busing et al. 1999).

    value: of everything. left_out: the value without each group, [G]. sizes: of the groups, [G].
    """
    shares = sizes.sum() / sizes
    return shares * value - (shares - 1) * left_out


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of some independent values, [G]."""
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def check_numbers(name: str, judged: Judged, clusters: Clusters) -> None:
    """Raise ConfigError if nothing would remain to be compared when one prompt is left out."""
    assert judged.references is not None
    prompts = "prompts" if judged.reference_of is None else "prompts with references of their own"
    for count, what in ((int(clusters.sizes.sum()), prompts), (len(judged.references), "references")):
        if count < FEWEST:
            raise ConfigError(f"metric={name} needs at least {FEWEST} {what}, of which there are {count}; give more")


def scores(
    measure: Callable[[], tuple[float, np.ndarray]],
    clusters: Clusters,
    identity: str,
    notes: Callable[[float, float], Sequence[str]],
) -> Scores:
    """measure: gives the metric, and its values without each group, [G]. notes: of the metric and its bias."""
    value, left_out = measure()
    values = pseudo_values(value, left_out, clusters.sizes)
    corrected = float(values.mean())
    details = {
        "corrected": corrected,  # without the bias of first order
        "bias": value - corrected,
        "interval": list(interval(values)),  # 95 %, of the corrected value
        "images": len(clusters.images),
        "references": len(clusters.references),
        "groups": len(values),
    }
    return Scores(values[:, None], value, identity, tuple(notes(value, value - corrected)), details)
