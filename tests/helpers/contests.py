"""Writes the images of a battery into run folders, for tests of what judges see."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.synthetic import write_run
from t2i.runs.image_files import ImageFiles, images_folder

HASH = "0123456789abcdef"
PROMPTS = [f"a drawing of number {i}" for i in range(12)]


def draw_images(
    folder: Path,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (0, 1),
    hash: str = HASH,
    name: str | None = None,
) -> Path:
    """Write random images with an index, a function of `name` (the folder's by default).

    Each file says in its text which folder it is in.
    """
    images = ImageFiles(folder, list(prompts), list(seeds), hash, {"steps": 2})
    images.write_index()
    info = PngInfo()
    info.add_text("parameters", str(folder))
    for prompt, seed in images.missing():
        draw = zlib.crc32(f"{name or folder.name} {prompt} {seed}".encode())
        pixels = np.random.default_rng(draw).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images.file(prompt, seed), pnginfo=info)
    return folder


def write_judged_run(folder: Path, *overrides: str, step: int = 200, **images) -> Path:
    """A finished run with images at a step."""
    write_run(folder, *overrides)
    draw_images(images_folder(folder, images.get("hash", HASH), step), name=folder.name, **images)
    return folder


def write_sweep(folder: Path, gammas: Sequence[int] = (1, 5), seeds: Sequence[int] = (0, 1)) -> Path:
    """A sweep over loss.snr_gamma and training seeds."""
    for gamma in gammas:
        for seed in seeds:
            write_judged_run(folder / f"snr_gamma-{gamma}_seed-{seed}", f"loss.snr_gamma={gamma}", f"seed={seed}")
    return folder
