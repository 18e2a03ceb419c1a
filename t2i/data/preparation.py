"""From an upright image to pixels of the size that is trained on: scaled, cropped and mirrored."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image, ImageOps

from t2i.config import ConfigError, check_positive
from t2i.data.images import Facts, read
from t2i.data.masks import Mask
from t2i.rng import generator

INTERPOLATIONS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
CROPS = ("center", "random")
MAX_ASPECT = 2  # of a bucket; longer images are cropped


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The settings of a data set that decide about the pixels of its images; see conf/dataset/shared/."""

    resolution: int
    crop: str
    crop_variants: int
    flip: bool
    interpolation: str
    buckets: bool
    bucket_step: int

    def __post_init__(self):
        for name in ("resolution", "crop_variants", "bucket_step"):
            check_positive(f"dataset.{name}", getattr(self, name), "use 1 or more")
        if self.crop not in CROPS:
            raise ConfigError(f"dataset.crop={self.crop} is not known; choose from {', '.join(CROPS)}")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ConfigError(f"dataset.interpolation={self.interpolation} is not known; choose from {known}")
        if self.buckets and not self.sizes():
            raise ConfigError(
                f"dataset.bucket_step={self.bucket_step} leaves no bucket of {self.resolution}² pixels; make it smaller"
            )

    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each bucket: multiples of the step, with about resolution² pixels and no more."""
        if not self.buckets:
            return [(self.resolution, self.resolution)]
        step, area = self.bucket_step, self.resolution**2
        sides = [(short, area // short // step * step) for short in range(step, self.resolution + 1, step)]
        wide = [(long, short) for short, long in sides if long <= MAX_ASPECT * short]
        return sorted({*wide, *(size[::-1] for size in wide)})


@dataclass(frozen=True)
class Preparation:
    """How images are scaled and cropped, and the number of views that are kept of each: crops × mirrored or not."""

    settings: ImageSettings

    @property
    def windows(self) -> int:
        return self.settings.crop_variants if self.settings.crop == "random" else 1

    @property
    def views(self) -> int:
        return self.windows * (2 if self.settings.flip else 1)

    def plain(self) -> "Preparation":
        """The same with a single view: the center, not mirrored."""
        return Preparation(replace(self.settings, crop="center", flip=False))

    def effect(self) -> tuple:
        """The settings that change a pixel; equal for settings with the same result."""
        return self.settings.sizes(), self.settings.crop, self.windows, self.settings.flip, self.settings.interpolation

    def size(self, facts: Facts) -> tuple[int, int]:
        """Width and height of the bucket whose shape is nearest to the image's."""

        def difference(size: tuple[int, int]) -> float:
            return abs(np.log(size[0] * facts.height / (size[1] * facts.width)))

        return min(self._sizes, key=difference)

    @cached_property
    def _sizes(self) -> list[tuple[int, int]]:
        return self.settings.sizes()

    def pixels(self, content: bytes, facts: Facts, view: int) -> np.ndarray:
        """A view of an image, scaled to cover the size of its bucket and cropped to it, [H, W, 3] uint8.

        The image's hash decides where the crops lie: the views are cached, and a run draws among them.
        """
        return self.drawn(content, facts, self._fixed_draws(facts, view))

    def framing(self, facts: Facts, view: int) -> tuple[int, ...]:
        """The size and crop conditioning for a view; see `drawn_framing`."""
        return self.drawn_framing(facts, self._fixed_draws(facts, view))

    def identity(self, facts: Facts, view: int) -> tuple:
        """What decides about the pixels and the framing of a view: equal for settings with the same result."""
        window, mirrored = self._numbers(view)
        position = window if self.settings.crop == "random" else "center"
        return facts.sha256, self.size(facts), position, bool(mirrored), self.settings.interpolation

    def _numbers(self, view: int) -> tuple[int, int]:
        """Which window a view shows, and 1 if it is mirrored."""
        return divmod(view, 2 if self.settings.flip else 1)

    def _fixed_draws(self, facts: Facts, view: int) -> np.ndarray:
        """The draws for a view, [3]."""
        window, mirrored = self._numbers(view)
        centering = generator(int(facts.sha256[:15], 16), "image", window).random(2)
        return np.array([*centering, 0.0 if mirrored else 1.0])

    def drawn(self, content: bytes, facts: Facts, draws: np.ndarray) -> np.ndarray:
        """A random view, [H, W, 3] uint8; draws, [3], in [0, 1): position across and down, and mirrored below 0.5."""
        return self._cut(read(content), facts, draws, INTERPOLATIONS[self.settings.interpolation])

    def mask(self, mask: Mask | None, facts: Facts, view: int) -> np.ndarray:
        """What a view shows of the image's mask, [H, W] uint8; all white if it has none."""
        if mask is None:
            return np.full(self.size(facts)[::-1], 255, np.uint8)
        shown = mask.pixels((facts.width, facts.height))
        return self._cut(shown, facts, self._fixed_draws(facts, view), Image.Resampling.BOX)

    def _cut(self, image: Image.Image, facts: Facts, draws: np.ndarray, method: Image.Resampling) -> np.ndarray:
        centering, mirrored = self._window(draws)
        cropped = ImageOps.fit(image, self.size(facts), method, centering=centering)
        return np.asarray(ImageOps.mirror(cropped) if mirrored else cropped)

    def drawn_framing(self, facts: Facts, draws: np.ndarray) -> tuple[int, ...]:
        """Size and crop conditioning of Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952, 2.2), in pixels.

        Height and width of the original image; top and left of the crop in the scaled image, which is mirrored if the
        crop is; height and width of the crop.
        """
        (across, down), mirrored = self._window(draws)
        width, height = self.size(facts)
        scale = max(width / facts.width, height / facts.height)
        left, top = (facts.width * scale - width) * across, (facts.height * scale - height) * down
        left = facts.width * scale - width - left if mirrored else left
        return facts.height, facts.width, round(top), round(left), height, width

    def _window(self, draws: np.ndarray) -> tuple[tuple[float, float], bool]:
        """The position of the crop between the edges, across and down in [0, 1], and whether it is mirrored."""
        centering = (float(draws[0]), float(draws[1])) if self.settings.crop == "random" else (0.5, 0.5)
        return centering, bool(self.settings.flip and draws[2] < 0.5)
