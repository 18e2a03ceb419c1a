"""A metric of images, as runs are compared by it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class ScoreMetric:
    """A metric of images. Its difference is that of the scores themselves, not relative."""

    name: str  # as in metric=[clip_score]
    better: str  # higher or lower
    battery: str  # hash of the image battery
    prefix: ClassVar[str] = "images/"
    mean: ClassVar[str] = "arithmetic"
    snr_bin: ClassVar[None] = None
    against: ClassVar[None] = None
    averaged: ClassVar[bool] = True  # images are drawn with averaged weights
    relative: ClassVar[bool] = False

    @property
    def logged(self) -> str:
        """Its name in metrics.jsonl."""
        return f"{self.prefix}{self.name}"

    @property
    def twin(self) -> None:
        """There is none of the raw weights."""
        return None

    @property
    def sign(self) -> int:
        """-1 if higher is better, so that the best have the smallest products."""
        return -1 if self.better == "higher" else 1

    def ratio(self, ours: ArrayLike, theirs: ArrayLike) -> Any:
        """The difference of two values of the metric."""
        return np.asarray(ours) - np.asarray(theirs)

    def moved(self, value: float, difference: ArrayLike) -> Any:
        """The value that has this difference from `value`: the inverse of `ratio`."""
        return value + np.asarray(difference)
