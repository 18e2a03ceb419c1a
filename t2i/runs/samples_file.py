"""The samples of a step, as the run folder keeps them: the images of all prompts in one row."""

import warnings
from pathlib import Path

from PIL import Image

from t2i.config import ConfigError
from t2i.runs.text import one_line


def read_samples(file: Path, count: int) -> list[Image.Image]:
    """The `count` images of a row. Raises ConfigError if the file is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # few bytes can stand for gigabytes
            with Image.open(file, formats=["PNG"]) as opened:
                row = opened.convert("RGB")
    except Exception as error:  # Pillow raises almost anything for damaged files: SyntaxError, struct.error, ...
        raise ConfigError(f"{file} can't be read ({one_line(error)}); delete it") from error
    width = row.width // count
    if width == 0:
        raise ConfigError(f"{file} does not hold the {count} images of samples.prompts; delete it")
    return [row.crop((i * width, 0, (i + 1) * width, row.height)) for i in range(count)]
