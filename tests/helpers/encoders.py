"""A model of the cache's tests: encoders without weights, whose output for an item depends on the item alone."""

import dataclasses
import hashlib

import numpy as np
import torch
from torch import Tensor

from t2i.data.cached_split import CachedSplit

LENGTH, WIDTH = 12, 4


@dataclasses.dataclass
class Encoders:
    """Counts what it encodes. masked: captions have as many tokens as words, and a mask; the rest is noise."""

    masked: bool = True
    dtype: torch.dtype = torch.bfloat16  # the text encoder computes in
    image_content: tuple = ("autoencoder",)
    text_content: tuple = ("text encoder",)
    trains_text: bool = False
    images: list[int] = dataclasses.field(default_factory=list)  # the value of the pixels of each
    captions: list[str] = dataclasses.field(default_factory=list)

    @property
    def limit(self):
        return lambda captions, **settings: type("Tokens", (), {"input_ids": [[0]] * len(captions)}), LENGTH

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.images += ((pixels[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        mean = pixels.mean(1, keepdim=True)[:, :, ::8, ::8] / 3
        return mean, mean.abs() + 0.1

    def embed(self, captions: list[str]) -> dict[str, Tensor]:
        self.captions += captions
        seeds = [int(hashlib.sha256(caption.encode()).hexdigest()[:8], 16) for caption in captions]
        random = [torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        text = {"encoder_hidden_states": torch.stack(random).to(self.dtype).float()}
        if self.masked:
            tokens = torch.tensor([len(caption.split()) for caption in captions])
            text["mask"] = (torch.arange(LENGTH) < tokens[:, None]).long()
        return text

    def counts(self) -> tuple[int, int]:
        """Images and captions since the last call."""
        counts = len(self.images), len(self.captions)
        self.images, self.captions = [], []
        return counts


def split_of(items: list[tuple[int, str]], views: int = 1, **changes) -> CachedSplit:
    """Images with a number, which is their only value up to 200, and a caption each."""
    settings = {
        "captions": [(caption,) for _, caption in items],
        "pixels": lambda index, view=0: np.full((16, 16, 3), items[index][0] % 200 + view, np.uint8),
        "weights": np.ones(len(items)),
        "fingerprint": repr(items),
        "views": views,
        "identity": lambda index, view: repr((items[index][0], view)),
    }
    return CachedSplit(**settings | changes)


def visible(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """Embedded captions with zeros where the mask hides them."""
    if "mask" not in text:
        return text
    return text | {"encoder_hidden_states": text["encoder_hidden_states"] * (text["mask"][..., None] == 1) + 0.0}
