"""CMMD: the maximum mean discrepancy of CLIP features of generated and of real images (Jayasumana et al. 2024)."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from t2i.evaluation.image_metrics import jackknife
from t2i.evaluation.image_metrics.features import features, identity
from t2i.evaluation.image_metrics.jackknife import Clusters
from t2i.evaluation.image_metrics.metric import Judged, Scores
from t2i.evaluation.image_metrics.network import FeatureNetwork
from t2i.hardware.uploads import with_float64

BLOCK = 1024  # rows of the kernel matrix that are in memory at a time


class CMMD:
    """The unbiased squared MMD of unit features under a Gaussian kernel (arXiv 2401.09603, eq. 4).

    An image is compared with the images of other prompts only, and with the references of other prompts: those of its
    own are not independent of it, and with them the expectation would depend on the number of prompts. With one image
    per prompt, and references of no prompt, this is the paper's formula. The paper's code keeps each image's product
    with itself, which adds about scale · (1 - mean kernel) · (1/N + 1/M).
    """

    better: ClassVar[str] = "lower"
    needs: ClassVar[frozenset[str]] = frozenset({"references"})

    def __init__(self, model: str, sigma: float, scale: float, revision: str | None, batch_size: int):
        self.network = FeatureNetwork(
            setting="metric.cmmd.model", model=model, revision=revision, batch_size=batch_size, whole=True
        )
        self.sigma, self.scale = sigma, scale

    def check(self) -> None:
        self.network.check()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        assert judged.references is not None
        clusters = Clusters.of(judged)
        jackknife.check_numbers("cmmd", judged, clusters)
        images = features(self.network, judged.images, device, cache_dir)
        references = features(self.network, judged.references, device, cache_dir)
        about = f"cmmd sigma={self.sigma} scale={self.scale} {references.content} {jackknife.pairing(judged)}"
        return jackknife.scores(
            lambda: squared_mmd(images.units, references.units, clusters, self.sigma, self.scale, device),
            clusters,
            identity((about, *self.network.image_content), cache_dir),
            lambda value, bias: (),
        )


def squared_mmd(
    x: np.ndarray, y: np.ndarray, clusters: Clusters, sigma: float, scale: float, device: torch.device | str = "cpu"
) -> tuple[float, np.ndarray]:
    """The distance of x, [N, D], and y, [M, D], and the distances without each group, [G]."""
    device = with_float64(torch.device(device))
    a, b = (torch.from_numpy(np.asarray(features, np.float64)).to(device) for features in (x, y))
    of_a, of_b = (clusters.images, clusters.image_groups), (clusters.references, clusters.reference_groups)
    groups = len(clusters.sizes)
    means = [
        _means(*_sums(*pair, groups, sigma), groups)
        for pair in ((a, of_a, a, of_a), (b, of_b, b, of_b), (a, of_a, b, of_b))
    ]
    distances = scale * (means[0] + means[1] - 2 * means[2])
    return float(distances[-1]), distances[:-1]


def _sums(
    a: Tensor,
    of_a: tuple[np.ndarray, np.ndarray],
    b: Tensor,
    of_b: tuple[np.ndarray, np.ndarray],
    groups: int,
    sigma: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of kernel - 1 over the pairs of different clusters, by group and group, [G + 1, G + 1]; and their numbers.

    Minus 1, which drops out of the distance, because the kernel of unit features is so close to 1.
    """
    clusters_a, clusters_b = (torch.from_numpy(of[0]).to(a.device) for of in (of_a, of_b))
    one_hot_a, one_hot_b = (
        torch.nn.functional.one_hot(torch.from_numpy(of[1]), groups + 1).to(a.device, torch.float64)
        for of in (of_a, of_b)
    )
    sums = torch.zeros(groups + 1, groups + 1, dtype=torch.float64, device=a.device)
    pairs = torch.zeros_like(sums)
    for start in range(0, len(a), BLOCK):
        rows = slice(start, start + BLOCK)
        squares = (a[rows] ** 2).sum(1)[:, None] + (b**2).sum(1) - 2 * a[rows] @ b.T
        kernel = torch.expm1(-squares.clamp_min(0) / (2 * sigma**2))
        other = (clusters_a[rows, None] != clusters_b).to(torch.float64)
        sums += one_hot_a[rows].T @ ((kernel * other) @ one_hot_b)
        pairs += one_hot_a[rows].T @ (other @ one_hot_b)
    return sums.cpu().numpy(), pairs.cpu().numpy()


def _means(sums: np.ndarray, pairs: np.ndarray, groups: int) -> np.ndarray:
    """The mean over the pairs without each group, and over all, [G + 1]."""
    totals = []
    for values in (sums, pairs):
        without = values.sum() - values.sum(0) - values.sum(1) + values.diagonal()
        totals.append(np.append(without[:groups], values.sum()))
    return totals[0] / totals[1]
