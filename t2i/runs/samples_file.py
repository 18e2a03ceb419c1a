"""The samples of a step, as the run folder keeps them: the images of all prompts in one row, the prompts below."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2i.config import ConfigError
from t2i.image_grid import labels_below
from t2i.runs.files import replacing
from t2i.runs.text import one_line, printable

REAL = "real.png"  # real images of the prompts, in the same form
HEIGHT = "t2i:height"  # a text in the file: the height of the images, below which the labels are


def write_samples(file: Path, images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
    """Write the images, which have one size, next to each other, each with its prompt below."""
    width, height = images[0].size
    labels = labels_below(width, [printable(str(prompt)) for prompt in prompts])
    row, about = Image.new("RGB", (width * len(images), height + labels.height), "white"), PngInfo()
    for i, image in enumerate(images):
        row.paste(image, (i * width, 0))
    row.paste(labels, (0, height))
    about.add_text(HEIGHT, str(height))
    with replacing(file) as temporary:
        row.save(temporary, "PNG", pnginfo=about)


def read_samples(file: Path, count: int) -> list[Image.Image]:
    """The `count` images of a row. Raises ConfigError if the file is damaged, or if there should be none."""
    if count == 0:
        raise ConfigError(f"{file} holds images, although samples.prompts is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # few bytes can stand for gigabytes
            with Image.open(file, formats=["PNG"]) as opened:
                row, height = opened.convert("RGB"), _height(opened)
    except Exception as error:  # Pillow raises almost anything for damaged files: SyntaxError, struct.error, ...
        raise ConfigError(f"{file} can't be read ({one_line(error)}); delete it") from error
    width = row.width // count
    if width == 0:
        raise ConfigError(f"{file} does not hold the {count} images of samples.prompts; delete it")
    return [row.crop((i * width, 0, (i + 1) * width, height)) for i in range(count)]


def _height(opened: Image.Image) -> int:
    """That of the images in a row; files of earlier versions have no labels."""
    noted = opened.info.get(HEIGHT)
    height = int(noted) if isinstance(noted, str) and noted.isdecimal() and len(noted) < 6 else 0
    return height if 0 < height <= opened.height else opened.height
