"""The samples of one run over time, with their captions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from t2i.comparison.results import Result
from t2i.config import ConfigError
from t2i.runs.files import numbered
from t2i.runs.samples_file import read_samples
from t2i.runs.text import one_line

MOST_ROWS = 12  # steps; of more, these are evenly spread
LARGE, SMALL = 320, 112  # pixels of the latest images, and of those over time
MOST_PROMPTS = 64


@dataclass
class Samples:
    """Images by prompt. rows: step and images, the earliest first."""

    prompts: list[str]
    latest: list[Image.Image] = field(default_factory=list)
    rows: list[tuple[int, list[Image.Image]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is not shown, and why


def samples_of(run: Result) -> Samples:
    """The samples that were drawn with the prompts of today. Files that can't be read are named."""
    prompts = [str(prompt) for prompt in run.config.get("samples.prompts") or []]
    found = Samples(prompts[:MOST_PROMPTS])
    files, since = numbered(run.folder / "samples", "png"), run.info.get("samples_since", -1)
    steps = [step for step in files if step > since]
    if earlier := len(files) - len(steps):
        found.notes.append(f"Those of {earlier} earlier steps were drawn with other settings (samples.*).")
    chosen = spread(steps)
    if len(chosen) < len(steps):
        found.notes.append(f"{len(chosen)} of {len(steps)} steps are shown.")
    for step in chosen if prompts else ():
        try:
            images = read_samples(files[step], len(prompts))[:MOST_PROMPTS]
        except ConfigError as error:
            found.notes.append(one_line(error))
            continue
        found.latest = [_scaled(image, LARGE) for image in images]
        found.rows.append((step, [_scaled(image, SMALL) for image in images]))
    return found


def spread(steps: Sequence[int], most: int = MOST_ROWS) -> list[int]:
    """Some of the steps, evenly spread, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _scaled(image: Image.Image, side: int) -> Image.Image:
    image = image.copy()
    image.thumbnail((side, side))
    return image
