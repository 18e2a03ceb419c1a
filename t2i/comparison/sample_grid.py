"""The samples of several runs side by side: the same prompts from the same noise."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from t2i.comparison.factors import as_text
from t2i.comparison.results import Result, printable
from t2i.comparison.verdicts import Comparison
from t2i.image_grid import grid

LARGEST = 128  # pixels; larger images are scaled down, or a page of thirty runs would be too heavy


@dataclass(frozen=True)
class Gallery:
    """Rows of images, one for each run, and the prompts of the columns."""

    prompts: list[str]
    rows: list[tuple[Result, int, list[Image.Image]]]  # run, step, images
    left_out: list[str]  # why runs have no row


def gallery(comparison: Comparison) -> Gallery:
    """Of all runs that drew the baseline's prompts in the same way, in the order of their settings."""
    wanted = _how(comparison.runs[0])
    others = sorted(comparison.left_out, key=lambda run: comparison.keys.order(run) if run.config else ())
    rows, left_out = [], []
    for run in [*comparison.runs, *others]:
        if (found := run.strip()) is None:
            left_out.append(f"{run.name} drew no samples")
        elif _how(run) != wanted:
            left_out.append(f"{run.name} drew with other settings (samples.*)")
        else:
            step, file = found
            rows.append((run, step, _cut(file, len(run.config["samples.prompts"]))))
    return Gallery(list(map(printable, wanted.get("samples.prompts", []))), rows, left_out)


def sheet(comparison: Comparison, shown: Gallery) -> Image.Image:
    """One image of it all."""
    labels = [", ".join([comparison.keys.label(run), row_note(comparison, run, step)]) for run, step, _ in shown.rows]
    return grid([images for _, _, images in shown.rows], shown.prompts, labels)


def row_note(comparison: Comparison, run: Result, step: int) -> str:
    """What tells its row from others of the same setting."""
    note = " ".join(
        [f"seed={as_text(run.seed)}", *(f"{key}={as_text(run.setting(key))}" for key in comparison.keys.paired)]
    )
    return f"{note}, {run.state} at step {step}" if run in comparison.left_out else note


def strip(images: list[Image.Image]) -> Image.Image:
    """A row of images of one size."""
    width, height = images[0].size
    joined = Image.new("RGB", (width * len(images), height))
    for place, image in enumerate(images):
        joined.paste(image, (place * width, 0))
    return joined


def _how(run: Result) -> dict:
    """The settings of its samples."""
    return {key: value for key, value in run.config.items() if key.startswith("samples.")}


def _cut(file: Path, columns: int) -> list[Image.Image]:
    with Image.open(file) as opened:
        strip = opened.convert("RGB")
    width = strip.width // columns
    images = [strip.crop((place * width, 0, (place + 1) * width, strip.height)) for place in range(columns)]
    for image in images:
        image.thumbnail((LARGEST, LARGEST))
    return images
