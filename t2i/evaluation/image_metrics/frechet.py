"""The Fréchet distance of features (Heusel et al. 2017; Stein et al. 2023), with an interval over prompts."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from t2i.evaluation.image_metrics import jackknife
from t2i.evaluation.image_metrics.features import Network, features, identity
from t2i.evaluation.image_metrics.jackknife import Clusters
from t2i.evaluation.image_metrics.metric import Judged, Scores
from t2i.hardware.uploads import with_float64


class Moments(NamedTuple):
    """Mean and covariance of features."""

    mean: Tensor  # [D]
    root: Tensor  # [R, D], whose transpose times itself is the covariance


class Sample:
    """N features, whose moments can be had without a group of them. Computes in float64."""

    def __init__(self, features: Tensor, groups: Tensor):
        """features: [N, D], of a mean near 0. groups: [N]."""
        self.features, self.groups = features, groups
        size, width = features.shape
        self.sums = (features.sum(0), features.T @ features) if size > width else None
        self.all = self._moments(torch.ones_like(groups, dtype=torch.bool))

    def without(self, group: int) -> Moments:
        kept = self.groups != group
        return self.all if bool(kept.all()) else self._moments(kept)

    def _moments(self, kept: Tensor) -> Moments:
        count = int(kept.sum())
        if self.sums is None:
            rows = self.features[kept]
            mean = rows.mean(0)
            return Moments(mean, (rows - mean) / (count - 1) ** 0.5)
        left_out = self.features[~kept]
        mean = (self.sums[0] - left_out.sum(0)) / count
        covariance = (self.sums[1] - left_out.T @ left_out - count * torch.outer(mean, mean)) / (count - 1)
        values, vectors = torch.linalg.eigh(covariance)
        return Moments(mean, values.clamp_min(0).sqrt()[:, None] * vectors.T)


def distance(a: Moments, b: Moments) -> float:
    """|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½) of two normal distributions (Dowson and Landau 1982).

    With Σ = RᵀR, the eigenvalues of Σ_a Σ_b are the squares of the singular values of R_a R_bᵀ, so that the trace of
    the root is their sum. This needs no root of a matrix, and holds for fewer images than dimensions.
    """
    root = torch.linalg.svdvals(a.root @ b.root.T).sum()
    return float(((a.mean - b.mean) ** 2).sum() + (a.root**2).sum() + (b.root**2).sum() - 2 * root)


def distances(
    x: np.ndarray, y: np.ndarray, clusters: Clusters, device: torch.device | str = "cpu"
) -> tuple[float, np.ndarray]:
    """The distance of x, [N, D], and y, [M, D], and the distances without each group, [G]."""
    device = with_float64(torch.device(device))
    centre = np.asarray(y, np.float64).mean(0)
    a, b = (
        Sample(torch.from_numpy(values - centre).to(device), torch.from_numpy(groups).to(device))
        for values, groups in ((x, clusters.image_groups), (y, clusters.reference_groups))
    )
    left_out = [distance(a.without(group), b.without(group)) for group in range(len(clusters.sizes))]
    return distance(a.all, b.all), np.array(left_out)


def frechet_scores(
    name: str, network: Network, judged: Judged, device: torch.device, cache_dir: str | None, published: tuple[int, str]
) -> Scores:
    """published: of how many images the published values are, and in what words."""
    assert judged.references is not None
    clusters = Clusters.of(judged)
    jackknife.check_numbers(name, judged, clusters)
    images = features(network, judged.images, device, cache_dir)
    references = features(network, judged.references, device, cache_dir)
    number, words = published

    def notes(value: float, bias: float) -> list[str]:
        few = min(len(images.values), len(references.values))
        if few >= number:
            return []
        return [
            f"{name} of {len(images.values):,} images against {len(references.values):,}: {words}. With fewer it is "
            f"biased: the jackknife corrects {value:.4g} to {value - bias:.4g}, in first order only. Compare it with "
            "values of the same numbers of images alone."
        ]

    about = f"frechet {references.content} {jackknife.pairing(judged)}"
    return jackknife.scores(
        lambda: distances(images.values, references.values, clusters, device),
        clusters,
        identity((about, *network.image_content), cache_dir),
        notes,
    )
