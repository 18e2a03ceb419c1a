"""The samples of several runs in one grid: the same prompts from the same noise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.comparison.factors import as_text
from t2i.comparison.results import Result
from t2i.comparison.verdicts import Comparison
from t2i.config import ConfigError
from t2i.image_grid import grid
from t2i.runs.samples_file import read_samples
from t2i.runs.text import one_line, printable

LARGEST = 128  # pixels; larger images are scaled down, or a page of thirty runs would be too heavy


@dataclass(frozen=True)
class Gallery:
    """Rows of images, one for each run, and the prompts of the columns."""

    prompts: list[str]
    rows: list[tuple[Result, int, list[Image.Image]]]  # run, step, images
    left_out: list[str]  # why runs have no row


def gallery(comparison: Comparison) -> Gallery:
    """The samples of all runs that drew the baseline's prompts with the same settings, sorted like the variants."""
    wanted = _sample_settings(comparison.runs[0])
    others = sorted(comparison.left_out, key=lambda run: comparison.factors.sort_key(run) if run.config else ())
    prompts = wanted.get("samples.prompts", [])
    rows, left_out, without = [], [], []
    for run in [*comparison.runs, *others]:
        samples = run.latest_samples()
        if samples is None:
            without.append(run.name)
        elif _sample_settings(run) != wanted:
            left_out.append(f"{run.name} was sampled with other settings (samples.*)")
        else:
            step, file = samples
            try:
                rows.append((run, step, _thumbnails(file, len(prompts))))
            except ConfigError as error:
                left_out.append(one_line(error))
    if without:
        several = f"{len(without)} runs have no samples ({without[0]}, ...)"
        left_out.append(several if len(without) > 1 else f"{without[0]} has no samples")
    return Gallery([printable(str(prompt)) for prompt in prompts], rows, left_out)


def gallery_image(comparison: Comparison, shown: Gallery) -> Image.Image:
    """The gallery as one image, with labels."""
    labels = [
        ", ".join([comparison.factors.label(run), row_note(comparison, run, step)]) for run, step, _ in shown.rows
    ]
    return grid([images for _, _, images in shown.rows], shown.prompts, labels)


def row_note(comparison: Comparison, run: Result, step: int) -> str:
    """What distinguishes a run's row from others of the same variant."""
    pairing = {"seed": run.seed} | {key: run.config_value(key) for key in comparison.factors.paired}
    note = " ".join(f"{key}={as_text(value)}" for key, value in pairing.items())
    note += "" if run.fold is None else f" fold {run.fold}"
    return f"{note}, {run.state} at step {step}" if run in comparison.left_out else note


def strip(images: list[Image.Image]) -> Image.Image:
    """Images of one size as a single row."""
    width, height = images[0].size
    row = Image.new("RGB", (width * len(images), height))
    for i, image in enumerate(images):
        row.paste(image, (i * width, 0))
    return row


def _sample_settings(run: Result) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key.startswith("samples.")}


def _thumbnails(file: Path, columns: int) -> list[Image.Image]:
    """The images of a strip, scaled down to at most LARGEST pixels."""
    images = read_samples(file, columns)
    for image in images:
        image.thumbnail((LARGEST, LARGEST))
    return images
