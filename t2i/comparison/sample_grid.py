"""The samples of several runs in one grid: the same prompts from the same noise."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.comparison.excerpt import sampled_runs
from t2i.comparison.factors import as_text
from t2i.comparison.results import Result
from t2i.comparison.verdicts import Comparison
from t2i.config import ConfigError
from t2i.image_grid import grid
from t2i.runs.files import numbered
from t2i.runs.samples_file import REAL, read_samples
from t2i.runs.text import one_line, printable

LARGEST = 128  # pixels; larger images are scaled down, or a page of thirty runs would be too heavy


@dataclass(frozen=True)
class Gallery:
    """Rows of images, one for each run, and the prompts of the columns."""

    prompts: list[str]
    rows: list[tuple[Result, int, list[Image.Image]]]  # run, step, images
    left_out: list[str]  # why runs have no row
    references: list[tuple[str, str, list[Image.Image]]]  # rows above them: label, note, images


def gallery(comparison: Comparison) -> Gallery:
    """The samples of all runs that drew the baseline's prompts with the same settings, sorted like the variants."""
    wanted = _sample_settings(comparison.runs[0])
    prompts = wanted.get("samples.prompts", [])
    rows, left_out, without = [], [], []
    for run in sampled_runs(comparison):
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
    references = _references(comparison, [run for run, *_ in rows], len(prompts))
    return Gallery([printable(str(prompt)) for prompt in prompts], rows, left_out, references)


def _references(comparison: Comparison, drawn: list[Result], columns: int) -> list[tuple[str, str, list[Image.Image]]]:
    """Real images of the prompts, as far as the data has them, and what was drawn before the first step."""
    real = [(run, run.folder / "samples" / REAL) for run in drawn]
    first = [(run, file) for run in drawn if (file := _first_samples(run)) is not None]
    found = []
    for label, note, files in (
        ("real images", "of the data set, with this caption", real),
        ("before training", "step 0 of {}", first),
    ):
        run, file = next(((run, file) for run, file in files if file.is_file()), (None, None))
        if run is not None and file is not None:
            with suppress(ConfigError):  # a damaged file costs its row
                found.append((label, note.format(run.name), _thumbnails(file, columns)))
    return found


def _first_samples(run: Result) -> Path | None:
    """What was drawn before the first step, with the run's settings of today; None if that is its last, too."""
    files = numbered(run.folder / "samples", "png")
    return files.get(0) if run.info.get("samples_since", -1) < 0 and run.step else None


def gallery_image(comparison: Comparison, shown: Gallery) -> Image.Image:
    """The gallery as one image, with labels."""
    labels = [
        ", ".join([comparison.factors.label(run), row_note(comparison, run, step)]) for run, step, _ in shown.rows
    ]
    labels = [f"{label}, {note}" for label, note, _ in shown.references] + labels
    rows = [images for *_, images in (*shown.references, *shown.rows)]
    return grid(rows, shown.prompts, labels)


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
