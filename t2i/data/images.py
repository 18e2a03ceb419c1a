"""From the bytes of an image file, whoever made it, to upright RGB pixels of the size that is trained."""

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
VERSION = "2"  # of what this file makes of an image; part of the fingerprints
SRGB = ImageCms.createProfile("sRGB")
MAX_ASPECT = 2  # of a bucket; what is longer is cropped


class BadImage(ValueError):
    """What is wrong with an image, in words that follow its name."""


def upright(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it, in sRGB: turned as its EXIF says, over white where it is transparent."""
    image = _in_srgb(ImageOps.exif_transpose(image))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image).convert("RGB")
    if image.mode == "F":
        raise BadImage("holds floating-point numbers, of which nobody knows what is white; save it in 8 bits")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """The colours that an embedded ICC profile means (Adobe RGB, Display P3, print inks), where it can be used."""
    profile, mode = image.info.get("icc_profile"), "RGBA" if image.mode == "RGBA" else "RGB"
    if not profile or image.mode not in ("L", "RGB", "RGBA", "CMYK", "LAB"):
        return image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, own, SRGB, outputMode=mode)
    except (ImageCms.PyCMSError, OSError):  # of another colour space than the image, or damaged: viewers ignore it
        return image


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Scaled to 8 bits, where Pillow's own conversion would clip."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise BadImage("holds numbers of 32 bits, of which nobody knows what is white; save it in 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def read(content: bytes) -> Image.Image:
    """The upright image in a file's bytes; BadImage if there is none, or one larger than Pillow thinks safe."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return upright(Image.open(io.BytesIO(content)))
    except BadImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"is too large ({str(error).rstrip('.')}); make it smaller") from error
    except UnidentifiedImageError as error:
        raise BadImage("is no image that Pillow knows" if content else "is an empty file") from error
    except Exception as error:  # the decoders of sixty formats raise what they like
        raise BadImage(f"can't be read as an image ({error or type(error).__name__})") from error


@dataclass(frozen=True)
class Facts:
    """What is to be known of an image before it is used; found once for each file."""

    sha256: str  # of the file's bytes
    width: int  # upright
    height: int
    problem: str  # empty: there is none


def examine(content: bytes) -> Facts:
    """Decode an image to see what it is, and whether it is whole."""
    digest = hashlib.sha256(content).hexdigest()
    try:
        return Facts(digest, *read(content).size, problem="")
    except BadImage as problem:
        return Facts(digest, 0, 0, str(problem))


@dataclass(frozen=True)
class Preparation:
    """How images are cut to size, and in how many views each of them is kept: windows × mirrored or not."""

    resolution: int
    crop: str
    crop_variants: int
    flip: bool
    interpolation: str
    buckets: bool
    bucket_step: int

    def __post_init__(self):
        for name in ("resolution", "crop_variants", "bucket_step"):
            check_positive(f"dataset.{name}", getattr(self, name), "1 is the least")
        if self.crop not in CROPS:
            raise ConfigError(f"dataset.crop={self.crop} is not known; choose from {', '.join(CROPS)}")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ConfigError(f"dataset.interpolation={self.interpolation} is not known; choose from {known}")
        if self.buckets and not self.sizes():
            raise ConfigError(
                f"dataset.bucket_step={self.bucket_step} leaves no size of {self.resolution}² pixels; make it smaller"
            )

    @property
    def windows(self) -> int:
        return self.crop_variants if self.crop == "random" else 1

    @property
    def views(self) -> int:
        return self.windows * (2 if self.flip else 1)

    def plain(self) -> "Preparation":
        """The same with one view: the middle, as it is."""
        return replace(self, crop="center", flip=False)

    def effect(self) -> tuple:
        """What changes a pixel: equal for settings that do the same."""
        return self.sizes(), self.crop, self.windows, self.flip, self.interpolation

    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each bucket: multiples of the step, of about resolution² pixels and no more."""
        if not self.buckets:
            return [(self.resolution, self.resolution)]
        step, area = self.bucket_step, self.resolution**2
        sides = [(short, area // short // step * step) for short in range(step, self.resolution + 1, step)]
        wide = [(long, short) for short, long in sides if long <= MAX_ASPECT * short]
        return sorted({*wide, *(size[::-1] for size in wide)})

    def size(self, facts: Facts) -> tuple[int, int]:
        """Of the bucket whose shape is nearest to the image's."""

        def difference(size: tuple[int, int]) -> float:
            return abs(np.log(size[0] * facts.height / (size[1] * facts.width)))

        return min(self.sizes(), key=difference)

    def pixels(self, content: bytes, facts: Facts, view: int) -> np.ndarray:
        """A view of an image, scaled to cover its size and cut there, [H, W, 3] uint8.

        Where the windows lie is settled by the image: the views are cached, and a run draws among them.
        """
        return self.drawn(content, facts, self._settled(facts, view))

    def framing(self, facts: Facts, view: int) -> tuple[int, ...]:
        """Where a view lies; see `drawn_framing`."""
        return self.drawn_framing(facts, self._settled(facts, view))

    def _settled(self, facts: Facts, view: int) -> np.ndarray:
        """A view as draws."""
        window, mirrored = divmod(view, 2 if self.flip else 1)
        middle = generator(int(facts.sha256[:15], 16), "image", window).random(2)
        return np.array([*middle, 0.0 if mirrored else 1.0])

    def drawn(self, content: bytes, facts: Facts, draws: np.ndarray) -> np.ndarray:
        """A view of its own, [H, W, 3] uint8; draws in [0, 1) say where it lies and whether it is mirrored, [3]."""
        centering, mirrored = self._window(draws)
        cut = ImageOps.fit(read(content), self.size(facts), INTERPOLATIONS[self.interpolation], centering=centering)
        return np.asarray(ImageOps.mirror(cut) if mirrored else cut)

    def drawn_framing(self, facts: Facts, draws: np.ndarray) -> tuple[int, ...]:
        """What Stable Diffusion XL is told of such a view (Podell et al. 2023, arXiv 2307.01952, 2.2), in pixels.

        Height and width of the image as it was; top and left of the cut in the scaled image, mirrored if it is;
        height and width of the cut.
        """
        (across, down), mirrored = self._window(draws)
        width, height = self.size(facts)
        scale = max(width / facts.width, height / facts.height)
        left, top = (facts.width * scale - width) * across, (facts.height * scale - height) * down
        left = facts.width * scale - width - left if mirrored else left
        return facts.height, facts.width, round(top), round(left), height, width

    def _window(self, draws: np.ndarray) -> tuple[tuple[float, float], bool]:
        """Where the cut lies between the edges, across and down, and whether it is mirrored."""
        centering = (float(draws[0]), float(draws[1])) if self.crop == "random" else (0.5, 0.5)
        return centering, bool(self.flip and draws[2] < 0.5)
