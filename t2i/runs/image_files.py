"""The images by which a model is judged, as files with an index: every prompt with every seed.

A run keeps them in images/BATTERY/step-NNNNNN/, where BATTERY is the beginning of the hash of all that determines them
besides the model: prompts, seeds, size, sampler, its steps and guidance.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.config import ConfigError
from t2i.runs.files import NUMBERED, Types, atomic_write, check_fields, listing, read_json
from t2i.runs.links import refuse_links_out

INDEX = "index.json"
MOST = 1_000_000  # images of a battery; a hundred thousand take days
IN_NAME = 8  # characters of the hash that name the folder
REMEDY = "delete its folder, and the images are drawn again"


@dataclass(frozen=True)
class ImageFiles:
    """The images of one model for one battery; some of them may not be drawn yet."""

    folder: Path
    prompts: list[str]
    seeds: list[int]
    hash: str  # of the battery: images of two models can be paired if it is the same
    settings: dict[str, Any]  # what the battery consists of besides prompts and seeds
    weights: str | None = None  # identifies the weights that draw them while training; None: those of the finished run

    def file(self, prompt: int, seed: int) -> Path:
        """Where the image of the n-th prompt with a seed belongs."""
        return self.folder / f"{prompt:05d}-{seed}.png"

    def missing(self) -> list[tuple[int, int]]:
        """(prompt, seed) of the images that are not drawn yet, by seed and prompt."""
        cells = [(prompt, seed) for seed in self.seeds for prompt in range(len(self.prompts))]
        return [cell for cell in cells if not self.file(*cell).is_file()]

    def write_index(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        index = {name: value for name, value in vars(self).items() if name != "folder"}
        atomic_write(self.folder / INDEX, json.dumps(index, indent=2, ensure_ascii=False) + "\n")


def images_folder(run: Path, battery: str, step: int) -> Path:
    """Where the images of a run's model after `step` steps are, for a battery of this hash."""
    return run / "images" / battery[:IN_NAME] / f"step-{step:06d}"


def read_images(folder: Path) -> ImageFiles:
    """The images in a folder with an index. Raises ConfigError if there is none, or if it is damaged."""
    file = folder / INDEX
    index = read_json(file, REMEDY)
    types: Types = {"hash": str, "prompts": list, "seeds": list, "settings": dict}
    check_fields(index, {**types, "weights": (str, type(None))}, file, REMEDY)
    if missing := types.keys() - index.keys():
        raise ConfigError(f"{file} lacks {', '.join(sorted(missing))}; {REMEDY}")
    if not all(isinstance(prompt, str) for prompt in index["prompts"]) or not all(
        type(seed) is int for seed in index["seeds"]
    ):
        raise ConfigError(f"{file}: prompts must be texts, and seeds integers; {REMEDY}")
    if len(index["prompts"]) * len(index["seeds"]) > MOST or any(not 0 <= seed < 2**64 for seed in index["seeds"]):
        raise ConfigError(f"{file}: prompts and seeds are too many, or seeds too large; {REMEDY}")
    return ImageFiles(folder, **{name: index[name] for name in types}, weights=index.get("weights"))


def all_images(run: Path) -> dict[tuple[str, int], ImageFiles]:
    """(hash of the battery, step) -> the images that a run has. Raises ConfigError for a damaged index."""
    refuse_links_out(run, run / "images")
    found = {}
    for folder in (step for battery in listing(run / "images") for step in listing(battery)):
        if (match := NUMBERED.fullmatch(folder.name)) and (folder / INDEX).exists():
            images = read_images(folder)
            found[images.hash, int(match[1])] = images
    return found
