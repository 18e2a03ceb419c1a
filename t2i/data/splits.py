"""The two sides of a data set: what is trained on, and what is held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np


@dataclass(frozen=True)
class Split:
    """Captioned images. `fingerprint` changes whenever an image or a caption may have changed."""

    cached: ClassVar[bool] = True  # encoded before training, as a whole
    captions: Sequence[tuple[str, ...]]  # of each image: one or more
    pixels: Callable[..., np.ndarray]  # index, view = 0 -> [H, W, 3] uint8
    weights: np.ndarray  # [N]: how often each image is drawn in an epoch, on average
    fingerprint: str
    views: int = 1  # of each image: windows, mirrored or not
    framing: Callable[[int, int], Sequence[int]] | None = None  # see Preparation; None: whole images as they are

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def images(self) -> int | None:
        """How many, if that is known before training."""
        return len(self)


class TrainingSet(Protocol):
    """What is trained on: a split that is encoded before training, or a stream that is encoded while it is read."""

    cached: ClassVar[bool]  # encoded before training

    @property
    def images(self) -> int | None:
        """How many, if that is known before training."""

    def examples(self, model: Any, cache_dir: str, batch_size: int, draws: Any) -> Any:
        """What the loop reads: a `t2i.data.loader.Readable`, with a fingerprint."""


@dataclass(frozen=True)
class Captioned:
    """A data set: what is trained on, and what is held out; of both, what could not be used, and why."""

    train: TrainingSet
    validation: Split
    skipped: Sequence[dict[str, str]] = ()  # item, reason
