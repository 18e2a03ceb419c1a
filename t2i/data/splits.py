"""The two sides of a data set: the images that are trained on, and those that are held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from t2i.data.batches import Draws
from t2i.data.emphasis import Masks
from t2i.data.held_out import Fold
from t2i.data.loader import Readable
from t2i.data.records import Item
from t2i.models.model import Model


@dataclass(frozen=True)
class Split:
    """Captioned images. `fingerprint` changes whenever an image or a caption may have changed."""

    cached: ClassVar[bool] = True  # all of it is encoded before training
    captions: Sequence[tuple[str, ...]]  # of each image: one or more
    pixels: Callable[..., np.ndarray]  # index, view = 0 -> [H, W, 3] uint8
    weights: np.ndarray  # [N]: how often each image is drawn in an epoch, on average
    fingerprint: str
    views: int = 1  # of each image: crops, mirrored or not
    framing: Callable[[int, int], Sequence[int]] | None = None  # see Preparation; None: images are not cropped
    # index, view -> a text that changes whenever the pixels or the framing may have changed: what the view is cached
    # by. None: the fingerprint stands for it, so that all images are encoded anew when one of them or a caption changes
    identity: Callable[[int, int], str] | None = None
    sources: np.ndarray | None = None  # [N] integers; each source has its part in every batch, by its weights
    loss_weights: np.ndarray | None = None  # [N]: what each image counts in the loss; None: all count alike
    masks: Masks | None = None
    items: Sequence[Item] = ()  # the images as the loader found them, for those who want names and sizes

    def __len__(self) -> int:
        return len(self.captions)

    def identify(self, index: int, view: int) -> str:
        """What a view of an image is cached by."""
        return self.identity(index, view) if self.identity else repr((self.fingerprint, index, view))

    @property
    def images(self) -> int:
        return len(self)


class TrainingSet(Protocol):
    """The images that are trained on: a split that is encoded before training, or a stream encoded as it is read."""

    cached: ClassVar[bool]  # all of it is encoded before training

    @property
    def images(self) -> int | None:
        """The number of images, if it is known before training."""
        ...

    def examples(self, model: Model, cache_dir: str, batch_size: int, draws: Draws) -> Readable:
        """The training examples, in the order of the draws' seed."""
        ...


@dataclass(frozen=True)
class Captioned:
    """A data set: the training set, the held-out split, and the items of both that could not be used."""

    train: TrainingSet
    validation: Split
    skipped: Sequence[dict[str, str]] = ()  # the `item`'s name, and the `reason`
    fold: Fold | None = None  # what is held out is one of several parts
    why_none: str = ""  # why no image is held out, where the settings leave it open what is measured then
