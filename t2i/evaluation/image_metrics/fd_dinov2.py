"""FD-DINOv2: the Fréchet distance of DINOv2 features (Stein et al. 2023, arXiv 2306.04675)."""

from typing import ClassVar

import torch

from t2i.evaluation.image_metrics.frechet import frechet_scores
from t2i.evaluation.image_metrics.metric import Judged, Scores
from t2i.evaluation.image_metrics.network import FeatureNetwork

PUBLISHED = 50_000, "published values are of 50,000 images (Stein et al. 2023)"


class FDDinoV2:
    """Between the class tokens of DINOv2 ViT-L/14 of generated and of real images.

    As in the paper's code (dgm-eval), all of an image is resized to the network's square, without a crop.
    """

    better: ClassVar[str] = "lower"
    needs: ClassVar[frozenset[str]] = frozenset({"references"})

    def __init__(self, model: str, revision: str | None, batch_size: int):
        self.network = FeatureNetwork(
            setting="metric.fd_dinov2.model", model=model, revision=revision, batch_size=batch_size, whole=True
        )

    def check(self) -> None:
        self.network.check()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        return frechet_scores("fd_dinov2", self.network, judged, device, cache_dir, PUBLISHED)
