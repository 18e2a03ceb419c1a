"""The image battery: fixed prompts × fixed seeds, each from its own noise, so that two models' images are paired."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2i.config import ConfigError
from t2i.rng import generator
from t2i.runs.files import replacing
from t2i.runs.full_disk import naming
from t2i.runs.image_files import ImageFiles
from t2i.runs.records import sync
from t2i.runs.text import one_line

TOGETHER = 16  # images drawn in one batch; fixed, so that neither an interruption nor more processes change a bit

Cells = Sequence[tuple[int, int]]  # (index of the prompt, seed)


@dataclass(frozen=True)
class ImageBattery:
    """P prompts × S seeds, and how their images are drawn."""

    prompts: Sequence[str]  # each once
    seeds: Sequence[int]
    steps: int  # of the sampler
    guidance_scale: float
    sampler: str | None = None  # name of a scheduler of Diffusers; None: the model's own
    size: int | None = None  # height and width in pixels; None: what the model was made for

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the images besides prompts, seeds and the model."""
        names = ("steps", "guidance_scale", "sampler", "size")
        return {name: getattr(self, name) for name in names}

    @property
    def hash(self) -> str:
        facts = [list(self.prompts), list(self.seeds), {**self.settings, "guidance_scale": float(self.guidance_scale)}]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def files(self, folder: Path, weights: str | None = None) -> ImageFiles:
        """The images in a folder, drawn or not."""
        return ImageFiles(folder, list(self.prompts), list(self.seeds), self.hash, self.settings, weights)

    def random(self, prompt: int, seed: int) -> np.random.Generator:
        """What the noise of an image is drawn from: a function of the seed and the prompt's text alone."""
        digest = hashlib.sha256(self.prompts[prompt].encode()).digest()
        high, low = (int.from_bytes(digest[start : start + 8], "little") for start in (0, 8))
        return generator(seed, "image_battery", high, low)


def spread(weights: np.ndarray, count: int) -> list[int]:
    """Indices of at most `count` items, spread evenly by weight over all, so that every kind has its share."""
    positions = (np.arange(count) + 0.5) / count * weights.sum()
    return np.unique(np.searchsorted(np.cumsum(weights), positions)).tolist()


def distinct(prompts: Iterable[str]) -> list[int]:
    """Where each prompt stands first."""
    first: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        first.setdefault(prompt, index)
    return list(first.values())


def missing_batches(files: ImageFiles) -> list[Cells]:
    """What is still to be drawn: the batches of which an image is missing, whole, by seed and prompt."""
    cells = [(prompt, seed) for seed in files.seeds for prompt in range(len(files.prompts))]
    batches = [cells[start : start + TOGETHER] for start in range(0, len(cells), TOGETHER)]
    missing = set(files.missing())
    return [batch for batch in batches if not missing.isdisjoint(batch)]


def draw_batch(battery: ImageBattery, cells: Cells, draw: Callable[..., list[Image.Image]]) -> list[Image.Image]:
    """The images of some cells. draw: as `t2i.sampling.images.draw`, with the pipeline and the prompts given."""
    randoms = [battery.random(*cell) for cell in cells]
    settings = {"steps": battery.steps, "guidance_scale": battery.guidance_scale, "size": battery.size}
    return draw(places=[prompt for prompt, _ in cells], randoms=randoms, **settings)


def write_batch(files: ImageFiles, cells: Cells, images: Sequence[Image.Image]) -> None:
    """A file that has its name is complete, also after a power cut."""
    for cell, image in zip(cells, images, strict=True):
        file = files.file(*cell)
        with naming(file), replacing(file) as temporary:
            image.save(temporary)
            sync(temporary)
    sync(files.folder)


@dataclass(frozen=True)
class Drawn:
    """The images of a battery, as a metric takes them: those of the first prompt, then those of the second ..."""

    files: ImageFiles

    def __len__(self) -> int:
        return len(self.files.prompts) * len(self.files.seeds)

    def __getitem__(self, index: int) -> Image.Image:
        if not 0 <= index < len(self):
            raise IndexError(index)
        prompt, seed = divmod(index, len(self.files.seeds))
        return read_image(self.files.file(prompt, self.files.seeds[seed]))


def read_image(file: Path) -> Image.Image:
    """An image in RGB. Raises ConfigError if the file is damaged."""
    try:
        with Image.open(file, formats=["PNG"]) as opened:
            return opened.convert("RGB")
    except Exception as error:  # Pillow raises almost anything for damaged files: SyntaxError, struct.error, ...
        raise ConfigError(f"{file} can't be read ({one_line(error)}); delete it, and it is drawn again") from error


@dataclass(frozen=True)
class Pixels:
    """Images of a data set, as a metric takes them."""

    pixels: Callable[[int, int], np.ndarray]  # index, view -> [H, W, 3] uint8
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels(self.indices[index], 0))
