"""How much each image, and each part of it, counts in the loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2i.config import ConfigError
from t2i.data.packs import Entries


@dataclass(frozen=True)
class MaskSettings:
    """What masks do to the loss; see conf/dataset/shared/images.yaml."""

    background: float  # what the background counts, next to 1
    normalize: bool  # whether all masks weigh the same, however small they are

    def __post_init__(self):
        if not 0 <= self.background < 1:
            raise ConfigError(
                f"dataset.mask_background={self.background} must be at least 0 and below 1: what the background counts "
                "next to the part that the mask shows"
            )


@dataclass(frozen=True)
class Masks:
    """The parts of a split's images that are trained on: 255 counts, 0 is background."""

    pixels: Callable[[int, int], np.ndarray]  # index, view -> [H, W] uint8, as the pixels of the image are cut
    identity: Callable[[int, int], str]  # changes whenever the mask of a view may have changed
    settings: MaskSettings

    def at_latents(self, index: int, view: int, size: tuple[int, int]) -> Tensor:
        """The mask of a view at the height and width of its latents, [1, h, w] uint8: means over their pixels."""
        height, width = size
        mask = Image.fromarray(self.pixels(index, view)).resize((width, height), Image.Resampling.BOX)
        return torch.from_numpy(np.array(mask))[None]

    def weight(self, shown: Tensor, normalize: bool) -> Tensor:
        """The weights of the errors, [B, 1, h, w] of uint8. normalize: to a mean of one in each image."""
        background = self.settings.background
        weight = background + (1 - background) * shown.float() / 255
        if not normalize:
            return weight
        mean = weight.mean((-2, -1), keepdim=True)
        return weight / mean.where(mean > 0, 1)  # an image whose mask lies outside the crop is not trained on


@dataclass(frozen=True)
class Emphasis:
    """The weights of the errors of a split's images."""

    loss_weights: np.ndarray  # [N]
    masks: Masks | None = None
    entries: Entries | None = None  # the masks of all views at the latents

    def weight(self, items: Sequence[int], views: Sequence[int]) -> Tensor:
        """Weights in the loss, [B, 1, h, w]; [B, 1, 1, 1] without masks. views: the entries of the items' views."""
        weights = torch.from_numpy(self.loss_weights[list(items)]).float()[:, None, None, None]
        if self.masks is None:
            return weights
        return weights * self.masks.weight(self._shown(views), self.masks.settings.normalize)

    def shares(self, views: Sequence[int]) -> Tensor | None:
        """Weights of the errors within each image, of mean one, [B, 1, h, w]; None without masks."""
        return None if self.masks is None else self.masks.weight(self._shown(views), normalize=True)

    def _shown(self, views: Sequence[int]) -> Tensor:
        assert self.entries is not None, "masks have entries"
        return self.entries.read("mask", views)
