"""How much the images of one prompt differ."""

from typing import ClassVar

import numpy as np
import torch

from t2i.evaluation.image_metrics.features import features, identity
from t2i.evaluation.image_metrics.metric import Judged, Scores
from t2i.evaluation.image_metrics.network import FeatureNetwork


class Diversity:
    """1 - the mean cosine of the features of two images of a prompt, over its pairs of seeds.

    Each pair counts once, and no image with itself, so that the expectation does not depend on the number of seeds.
    Noise is diverse, too: read it together with a metric of quality.
    """

    better: ClassVar[str] = "higher"
    needs: ClassVar[frozenset[str]] = frozenset({"seeds"})

    def __init__(self, model: str, revision: str | None, batch_size: int):
        self.network = FeatureNetwork(
            setting="metric.diversity.model", model=model, revision=revision, batch_size=batch_size
        )

    def check(self) -> None:
        self.network.check()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        seeds = judged.seeds
        assert seeds > 1, "diversity needs several seeds"
        units = features(self.network, judged.images, device, cache_dir).units.reshape(len(judged.prompts), seeds, -1)
        cosines = np.einsum("psd,ptd->pst", units, units)
        values = 1 - (cosines.sum((1, 2)) - np.trace(cosines, axis1=1, axis2=2)) / (seeds * (seeds - 1))
        return Scores(
            values[:, None], float(values.mean()), identity(("diversity", *self.network.image_content), cache_dir)
        )
