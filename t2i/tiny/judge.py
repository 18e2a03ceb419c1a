"""Scores how well samples match their captions, with a small CLIP that was trained on the real images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from t2i.evaluation.image_metrics.network import FeatureNetwork

TINY = Path(__file__).parent


@dataclass(frozen=True)
class Match:
    """How well samples match their captions."""

    score: float  # mean cosine similarity of a sample and its caption
    shuffled: float  # the same with another sample's caption: the score of images that ignore their captions
    recall: float  # fraction of samples whose own caption is the most similar of all candidates


class Judge:
    """Scores images against captions with a small CLIP, that of metric=clip_score; insensitive to blur."""

    def __init__(self, device: str | torch.device = "cpu"):
        network = FeatureNetwork(setting="metric.clip_score.model", model="tiny", reads_text=True)
        self.network = network.load(torch.device(device))

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        """Cosine similarity of each image and its caption, [B]."""
        return (self.image_features(images) * self.text_features(captions)).sum(-1)

    def match(self, images: Sequence[Image.Image], captions: Sequence[str], candidates: Sequence[str] = ()) -> Match:
        """candidates: captions that compete with a sample's own for recall; by default those of the other samples."""
        distinct = list(dict.fromkeys(captions))
        # A fixed permutation that moves every caption: each takes its neighbour's in a shuffled list.
        order = [distinct[i] for i in np.random.default_rng(0).permutation(len(distinct))]
        other = dict(zip(order, [*order[1:], order[0]], strict=True))
        features = self.image_features(images)
        own = (features * self.text_features(captions)).sum(-1)
        shuffled = (features * self.text_features([other[caption] for caption in captions])).sum(-1)
        best = (features @ self.text_features(sorted({*candidates, *captions})).T).max(dim=1).values
        return Match(own.mean().item(), shuffled.mean().item(), (own >= best - 1e-5).float().mean().item())

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors, [B, D]."""
        return F.normalize(self.network.images(images), dim=-1)

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors, [B, D]."""
        return self.network.texts(captions)


def nearest_is_own(samples: Sequence[Image.Image], real: Sequence[Image.Image]) -> float:
    """Fraction of samples whose nearest real image, by mean squared pixel distance, is the one of their own caption.

    real: N images; samples: images of the same captions in the same order, repeated any number of times.
    """
    a, b = (
        np.stack([np.asarray(image.convert("RGB"), dtype=np.float32).ravel() for image in images])
        for images in (samples, real)
    )
    distances = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    return float((distances.argmin(1) == np.arange(len(samples)) % len(real)).mean())
