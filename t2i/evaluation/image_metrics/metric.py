"""What a metric of images is given, and what it returns."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image


class Pictures(Protocol):
    """Images in RGB that are opened one by one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The images of one model, P prompts × S seeds, and what they may be compared with."""

    prompts: Sequence[str]  # [P]
    images: Pictures  # [P·S]: those of the first prompt, then those of the second ...
    references: Pictures | None = None  # real images that were not trained on
    reference_of: Sequence[int] | None = (
        None  # [P]: the reference that a prompt is the caption of; None: of no single one
    )
    trained_on: Pictures | None = None  # the training images

    @property
    def seeds(self) -> int:
        """S: images of each prompt."""
        return len(self.images) // len(self.prompts)


@dataclass(frozen=True)
class Scores:
    """What a metric found, in a form in which two models can be compared prompt by prompt.

    A metric of single images gives each its value. One of whole sets, such as a distance of distributions, gives the
    pseudo-values of the jackknife, whose mean is the metric without its first-order bias (Tukey 1958).
    """

    values: np.ndarray  # [P, S], of each image; or [G, 1], of each prompt or group of prompts
    value: float  # the metric
    identity: (
        str  # what else determines it: the network's files, the references; scores of another one can't be compared
    )
    notes: Sequence[str] = ()  # warnings, as sentences
    details: dict[str, Any] = field(default_factory=dict)  # what else is worth showing, as JSON


class ImageMetric(Protocol):
    """A metric of images. It loads its network when it is first called."""

    better: ClassVar[str]  # higher or lower
    needs: ClassVar[frozenset[str]]  # which of references, reference_of, trained_on, several seeds ("seeds")

    def check(self) -> None:
        """Raise ConfigError if the network's files or a package are missing; loads nothing heavy."""
        ...

    def __call__(self, judged: Judged, device: torch.device, cache_dir: str | None) -> Scores:
        """cache_dir: where features of images are kept from call to call; None: nowhere."""
        ...
