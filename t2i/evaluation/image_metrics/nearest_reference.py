"""How often an image is nearest, in pixels, to the real image of its own prompt: a check that needs no network."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from t2i.evaluation.image_metrics.metric import Judged, Pictures, Scores


@dataclass(frozen=True)
class NearestReference:
    """1 if no other prompt's reference has a smaller mean squared distance, else 0; chance is one in P.

    size: height and width in pixels at which images are compared.
    """

    size: int
    better: ClassVar[str] = "higher"
    needs: ClassVar[frozenset[str]] = frozenset({"reference_of"})

    def check(self) -> None:
        """Nothing can be missing."""

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        assert judged.references is not None
        assert judged.reference_of is not None
        real, images = self._pixels(judged.references)[list(judged.reference_of)], self._pixels(judged.images)
        distances = (images**2).sum(1)[:, None] - 2 * images @ real.T + (real**2).sum(1)
        own = np.repeat(np.arange(len(judged.prompts)), judged.seeds)
        hits = (distances.argmin(1) == own).astype(np.float64)
        return Scores(hits.reshape(-1, judged.seeds), float(hits.mean()), f"pixels {self.size}")

    def _pixels(self, images: Pictures) -> np.ndarray:
        """[N, size · size · 3]"""
        resized = (
            images[place].convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
            for place in range(len(images))
        )
        return np.stack([np.asarray(image, dtype=np.float32).ravel() for image in resized])
