"""From the bytes of any image file to upright RGB pixels of the size that is trained on."""

import hashlib
import io
import warnings
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from t2i.config import ConfigError, check_positive
from t2i.rng import generator

INTERPOLATIONS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
CROPS = ("center", "random")
SUFFIXES = {f".{suffix}" for suffix in ("avif", "bmp", "gif", "jp2", "jpeg", "jpg", "pgm", "png", "ppm", "tga")}
SUFFIXES |= {".tif", ".tiff", ".webp"}
VERSION = "2"  # of this file's results for an image; part of the fingerprints
SRGB = ImageCms.createProfile("sRGB")
MAX_ASPECT = 2  # of a bucket; longer images are cropped


class BadImage(ValueError):
    """What is wrong with an image, as the rest of a sentence that begins with its name."""


def upright(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it, in sRGB: rotated according to its EXIF data, over white where transparent."""
    image = _in_srgb(ImageOps.exif_transpose(image))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image).convert("RGB")
    if image.mode == "F":
        raise BadImage("has floating-point pixels, whose white is undefined; save it with 8 bits per channel")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB, if an embedded ICC profile says that it is in Adobe RGB, Display P3, printing inks ..."""
    profile, mode = image.info.get("icc_profile"), "RGBA" if image.mode == "RGBA" else "RGB"
    if not profile or image.mode not in ("L", "RGB", "RGBA", "CMYK", "LAB"):
        return image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, own, SRGB, outputMode=mode) or image  # None is for inPlace=True only
    except (ImageCms.PyCMSError, OSError):  # the profile is damaged, or of another colour space: viewers ignore it
        return image


def _from_16_bits(image: Image.Image) -> Image.Image:
    """The image scaled to 8 bits; Pillow's own conversion would clip."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise BadImage("has 32-bit pixels, whose white is undefined; save it with 8 or 16 bits per channel")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def read(content: bytes) -> Image.Image:
    """The upright image in a file's bytes; BadImage if there is none, or if Pillow considers its size unsafe."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return upright(Image.open(io.BytesIO(content)))
    except BadImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"is too large ({str(error).rstrip('.')}); scale it down") from error
    except UnidentifiedImageError as error:
        raise BadImage("is not an image in a format that Pillow reads" if content else "is an empty file") from error
    except Exception as error:  # the decoders of sixty formats raise anything
        raise BadImage(f"can't be read as an image ({error or type(error).__name__})") from error


@dataclass(frozen=True)
class Facts:
    """What has to be known about an image before it is used; determined once for each file, and stored."""

    sha256: str  # of the file's bytes
    width: int  # upright
    height: int
    problem: str  # empty if the image can be used

    @property
    def uniform(self) -> float:
        """A number in [0, 1) that depends on the file's bytes alone."""
        return int(self.sha256[:16], 16) / 2**64


def examine(content: bytes) -> Facts:
    """The facts of an image; all of it is decoded, to see whether it is complete."""
    digest = hashlib.sha256(content).hexdigest()
    try:
        width, height = read(content).size
    except BadImage as problem:
        return Facts(digest, 0, 0, str(problem))
    return Facts(digest, width, height, "")


def unusable(problem: str) -> Facts:
    """The facts of an image whose content is not even read."""
    return Facts("", 0, 0, problem)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How images are scaled and cropped, and the number of views that are kept of each: crops × mirrored or not."""

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

    @property
    def windows(self) -> int:
        return self.crop_variants if self.crop == "random" else 1

    @property
    def views(self) -> int:
        return self.windows * (2 if self.flip else 1)

    def plain(self) -> "Preparation":
        """The same with a single view: the center, not mirrored."""
        return replace(self, crop="center", flip=False)

    def effect(self) -> tuple:
        """The settings that change a pixel; equal for settings with the same result."""
        return self.sizes(), self.crop, self.windows, self.flip, self.interpolation

    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each bucket: multiples of the step, with about resolution² pixels and no more."""
        if not self.buckets:
            return [(self.resolution, self.resolution)]
        step, area = self.bucket_step, self.resolution**2
        sides = [(short, area // short // step * step) for short in range(step, self.resolution + 1, step)]
        wide = [(long, short) for short, long in sides if long <= MAX_ASPECT * short]
        return sorted({*wide, *(size[::-1] for size in wide)})

    def size(self, facts: Facts) -> tuple[int, int]:
        """Width and height of the bucket whose shape is nearest to the image's."""

        def difference(size: tuple[int, int]) -> float:
            return abs(np.log(size[0] * facts.height / (size[1] * facts.width)))

        return min(self.sizes(), key=difference)

    def pixels(self, content: bytes, facts: Facts, view: int) -> np.ndarray:
        """A view of an image, scaled to cover the size of its bucket and cropped to it, [H, W, 3] uint8.

        The image's hash decides where the crops lie: the views are cached, and a run draws among them.
        """
        return self.drawn(content, facts, self._fixed_draws(facts, view))

    def framing(self, facts: Facts, view: int) -> tuple[int, ...]:
        """The size and crop conditioning for a view; see `drawn_framing`."""
        return self.drawn_framing(facts, self._fixed_draws(facts, view))

    def _fixed_draws(self, facts: Facts, view: int) -> np.ndarray:
        """The draws for a view, [3]."""
        window, mirrored = divmod(view, 2 if self.flip else 1)
        centering = generator(int(facts.sha256[:15], 16), "image", window).random(2)
        return np.array([*centering, 0.0 if mirrored else 1.0])

    def drawn(self, content: bytes, facts: Facts, draws: np.ndarray) -> np.ndarray:
        """A random view, [H, W, 3] uint8; draws, [3], in [0, 1): position across and down, and mirrored below 0.5."""
        centering, mirrored = self._window(draws)
        cropped = ImageOps.fit(read(content), self.size(facts), INTERPOLATIONS[self.interpolation], centering=centering)
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
        centering = (float(draws[0]), float(draws[1])) if self.crop == "random" else (0.5, 0.5)
        return centering, bool(self.flip and draws[2] < 0.5)
