"""What a run writes down while it trains: the run folder first, then the tracker and the terminal."""

import logging
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from t2i.grids import grid
from t2i.progress import Bar
from t2i.runs import Run
from t2i.tracking import Tracker
from t2i.validation import Battery, write_errors

log = logging.getLogger(__name__)


class Journal:
    """Records of one run."""

    def __init__(self, run: Run, tracker: Tracker, bar: Bar):
        self.run, self.tracker, self.bar = run, tracker, bar
        self.hours_before = run.latest().get("speed/hours", 0.0)  # of a run that goes on
        self.began = time.monotonic()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl, one row of the tracker."""
        hours = self.hours_before + (time.monotonic() - self.began) / 3600
        metrics = metrics | {"memory/peak_gb": peak_memory_gb(), "speed/hours": hours}
        self.run.log(step, metrics)
        self.tracker.log(step, metrics)
        self.bar.advance(step, metrics)

    def errors(self, step: int, battery: Battery, errors: dict[str, np.ndarray]) -> None:
        """The battery's errors, picture by picture."""
        if self.run.writes:
            write_errors(self.run.folder / "validation" / f"step-{step:06d}.parquet", battery, errors)

    def pictures(self, step: int, prompts: list[str], images: list[Image.Image]) -> None:
        """The samples of a step: a strip without labels, and samples/progress.png with a row for each step so far."""
        folder = self.run.folder / "samples"
        folder.mkdir(exist_ok=True)
        width, height = images[0].size
        strip = Image.new("RGB", (width * len(images), height))
        for place, image in enumerate(images):
            strip.paste(image, (place * width, 0))
        strip.save(folder / f"step-{step:06d}.png")
        rows = {int(file.stem[5:]): Image.open(file) for file in sorted(folder.glob("step-*.png"))}
        cut = [[row.crop((x, 0, x + width, height)) for x in range(0, row.width, width)] for row in rows.values()]
        grid(cut, prompts, [f"step {number}" for number in rows]).save(folder / "progress.png")
        self.tracker.images(step, "samples", images, prompts)


@contextmanager
def journal(run: Run, tracker: Tracker, sweep: str | None, overrides: list[str], steps: int) -> Iterator[Journal]:
    """The journal of `run`, with the tracker and the progress bar switched on until the run ends."""
    name = run.folder.name if sweep else "-".join(run.folder.parts[-2:])
    tags = [override for override in overrides if len(override) <= 64]  # the longest that W&B takes
    tracker_id = tracker.start(run.folder, name, sweep, tags, run.config, run.info.get("tracker_id"))
    run.update(tracker_id=tracker_id)
    succeeded = False
    try:
        with Bar(steps, shown=run.writes) as bar:
            yield Journal(run, tracker, bar)
        succeeded = True
    finally:
        tracker.finish(succeeded)


def peak_memory_gb() -> float:
    """Peak memory so far: of the GPU where there is one, else of the process; in 10⁹ bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
