"""How often an image matches its own prompt best among all prompts of the battery."""

from typing import ClassVar

import numpy as np
import torch

from t2i.evaluation.image_metrics.clip_score import match_identity
from t2i.evaluation.image_metrics.features import features
from t2i.evaluation.image_metrics.metric import Judged, Scores
from t2i.evaluation.image_metrics.network import FeatureNetwork

EQUAL = 1e-5  # cosines that differ by less are equal


class RPrecision:
    """1 if no other prompt has a higher cosine with the image, else 0 (Park et al. 2021: CLIP-R-precision).

    Chance is one in P, so that scores of different numbers of prompts can't be compared.
    """

    better: ClassVar[str] = "higher"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, model: str, revision: str | None, batch_size: int):
        self.network = FeatureNetwork(
            setting="metric.r_precision.model", model=model, revision=revision, batch_size=batch_size, reads_text=True
        )

    def check(self) -> None:
        self.network.check()

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        loaded = self.network.load(device)
        images = features(self.network, judged.images, device, cache_dir, loaded).units
        cosines = images @ loaded.texts(judged.prompts).double().numpy().T
        own = cosines[np.arange(len(images)), np.repeat(np.arange(len(judged.prompts)), judged.seeds)]
        hits = (own >= cosines.max(1) - EQUAL).astype(np.float64)
        identity = f"{len(judged.prompts)} {match_identity(self.network, cache_dir)}"
        return Scores(hits.reshape(-1, judged.seeds), float(hits.mean()), identity)
