"""From the bytes of any image file to an upright image in sRGB, and the facts about it that are stored."""

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from t2i.data.image_plugins import missing_plugin, register_plugins
from t2i.data.odd_files import turned, without_long_texts

SUFFIXES = {
    f".{suffix}"
    for suffix in (
        *("avif", "avifs", "bmp", "dib", "gif", "j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg", "jpf", "jpg", "jpx"),
        *("apng", "mpo", "pbm", "pgm", "png", "pnm", "ppm", "psd", "qoi", "tga", "tif", "tiff", "webp"),
        *("heic", "heif", "hif", "jxl"),  # with t2i.data.image_plugins
    )
}
FOREIGN = {  # images of cameras and of drawing programs that t2i does not read, but names
    f".{suffix}"
    for suffix in ("arw", "cr2", "cr3", "dng", "nef", "orf", "raf", "rw2", "exr", "hdr", "svg", "xcf", "kra")
}
VERSION = "2"  # of the pixels that an image gets, here and in t2i.data.preparation; part of the fingerprints
LARGEST = 2**30  # bytes of a file
SRGB = ImageCms.createProfile("sRGB")


class BadImage(ValueError):
    """What is wrong with an image, as the rest of a sentence that begins with its name."""


def upright(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it, in sRGB: rotated according to its EXIF data, over white where transparent."""
    image = _in_srgb(turned(image))
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


@cache
def formats() -> list[str]:
    """The formats that Pillow decodes itself: EPS it hands to Ghostscript, which runs the file as a program."""
    Image.preinit()  # the common formats first, as Pillow tries them
    Image.init()
    register_plugins()
    return [name for name in Image.ID if name != "EPS"]


def opacity(image: Image.Image) -> Image.Image:
    """How opaque the pixels of an image are, upright, 8 bits each."""
    image = turned(image)
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else Image.new("L", image.size, 255)


def brightness(image: Image.Image) -> Image.Image:
    """An image in grey, upright, 8 bits a pixel, over black where it is transparent."""
    if not image.has_transparency_data:
        return upright(image).convert("L")
    pixels = turned(image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", pixels.size, "black"), pixels).convert("L")


def read(content: bytes, convert: Callable[[Image.Image], Image.Image] = upright) -> Image.Image:
    """The upright image in a file's bytes; BadImage if there is none, or if Pillow considers its size unsafe.

    convert: what is done with it, as `upright` says.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _opened(content, convert)
    except BadImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"is too large ({str(error).rstrip('.')}); scale it down") from error
    except UnidentifiedImageError as error:
        unknown = missing_plugin(content) or "is not an image in a format that t2i reads"
        raise BadImage(unknown if content else "is an empty file") from error
    except Exception as error:  # the decoders of sixty formats raise anything
        raise BadImage(f"can't be read as an image ({error or type(error).__name__})") from error


def read_small(content: bytes, side: int) -> tuple[Image.Image, str]:
    """The upright image, of at most `side` pixels, and its format. It is for looking at: JPEG is decoded in part.

    Raises BadImage as `read` does.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(content), formats=formats())
            kind = str(opened.format)
            opened.draft(None, (side, side))
            image = upright(opened)
    except Exception:  # `read` knows what is wrong, or what helps
        image, kind = read(content), "PNG"
    image.thumbnail((side, side))
    return image, kind


def _opened(content: bytes, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The converted image: of an animation its first frame."""
    try:
        return convert(Image.open(io.BytesIO(content), formats=formats()))
    except ValueError as error:  # Pillow refuses a PNG for its texts, such as the workflow of an image tool
        if isinstance(error, BadImage) or (shorter := without_long_texts(content)) == content:
            raise
        return convert(Image.open(io.BytesIO(shorter), formats=formats()))


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


def examine_file(file: Path) -> Facts:
    """The facts of the image in a file, which is not read if it is larger than any image that can be decoded."""
    if (size := file.stat().st_size) > LARGEST:
        return unusable(f"has {size} bytes; an image may have {LARGEST}")
    return examine(file.read_bytes())


def unusable(problem: str) -> Facts:
    """The facts of an image whose content is not even read."""
    return Facts("", 0, 0, problem)
