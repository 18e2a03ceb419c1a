"""Records a run while it trains: in the run folder first, then in the tracker and the terminal."""

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from t2i.config import ConfigError
from t2i.evaluation.battery import Battery
from t2i.hardware.host_memory import peak_memory
from t2i.image_grid import grid
from t2i.runs.errors_file import write_errors
from t2i.runs.files import numbered, numbered_file, replacing
from t2i.runs.folder import Run
from t2i.runs.records import ERRORS
from t2i.runs.samples_file import read_samples, write_samples
from t2i.tracking import RunInfo, Tracker
from t2i.tracking.guarded import Guarded
from t2i.training.progress import Bar

log = logging.getLogger(__name__)
RESOLVED = (  # of run.json: what settings such as auto have come to, and what the run works on
    *("precision", "attention", "channels_last", "device", "gpu", "driver", "threads", "num_processes", "distributed"),
    *("backend", "devices", "quantize", "parameters", "trained_parameters", "pictures", "battery", "weighting"),
)
LONGEST_TAG = 64  # characters; W&B refuses longer tags


class Recorder:
    """Writes the records of one run."""

    def __init__(self, run: Run, tracker: Guarded, bar: Bar):
        self.run, self.tracker, self.bar = run, tracker, bar
        self.hours_before, self.began = 0.0, time.monotonic()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, and tell the tracker and the progress bar."""
        hours = self.hours_before + (time.monotonic() - self.began) / 3600
        metrics = metrics | {"memory/peak_gb": peak_memory_gb(), "speed/hours": hours}
        self.run.log(step, metrics)
        self.tracker.log(step, metrics)
        self.bar.advance(step, metrics)

    def errors(self, step: int, battery: Battery, errors: dict[str, np.ndarray], name: str = "") -> None:
        """Store a battery's errors, one for each image and noise level. name: of the battery, as in `ERRORS`."""
        if self.run.writes:
            file = numbered_file(self.run.folder / ERRORS[name], step, "parquet")
            write_errors(file, battery.levels.name, battery.levels.values, errors)

    def images(self, step: int, prompts: list[str], images: list[Image.Image]) -> None:
        """Store the samples of a step: a strip, and progress.png with a row for each step so far."""
        folder = self.run.folder / "samples"
        folder.mkdir(exist_ok=True)
        write_samples(numbered_file(folder, step, "png"), images, prompts)
        strips = self._strips().items()
        rows = {number: _cut(file, len(prompts)) for number, file in strips if number > self.run.samples_since}
        rows = {number: row for number, row in rows.items() if row}
        with replacing(folder / "progress.png") as file:
            grid(list(rows.values()), prompts, [f"step {number}" for number in rows]).save(file)
        self.tracker.images(step, "samples", images, prompts)

    def catch_up(self, last_step: int) -> None:
        """Send the tracker the steps up to `last_step` that it does not have; delete the records of later steps.

        Trackers write with a delay, so a crash loses more of their records than of the run folder's. A tracker that
        the run did not start with has none of them.
        """
        self.run.rewind(last_step)
        if self.run.samples_since > last_step:  # later ones are drawn again
            self.run.update(samples_since=last_step)
        self.hours_before = self.run.latest().get("speed/hours", 0.0)
        lines = {int(line.pop("step")): line for line in self.run.metrics()}
        strips, prompts = self._strips(), self.run.config["samples"]["prompts"]
        for step in sorted(lines | strips):
            if step > last_step:
                strips[step].unlink()
                continue
            shows_prompts = step in strips and step > self.run.samples_since
            if shows_prompts and self.tracker.wants(step) and (images := _cut(strips[step], len(prompts))):
                self.tracker.images(step, "samples", images, prompts)
            if step in lines:
                self.tracker.log(step, lines[step])

    def _strips(self) -> dict[int, Path]:
        """step -> the file with its samples."""
        return numbered(self.run.folder / "samples", "png")


def _cut(strip: Path, count: int) -> list[Image.Image]:
    """The images of a strip; none, and a warning, if the file is damaged."""
    try:
        return read_samples(strip, count)
    except ConfigError as error:
        log.warning("%s", error)
        return []


@contextmanager
def recording(
    run: Run, tracker: Tracker, sweep: str | None, overrides: list[str], steps: int, last_step: int
) -> Generator[Recorder]:
    """The recorder of `run`; the tracker and the progress bar are active within.

    last_step: the step of the checkpoint that the run continues from; -1 for a new run.
    """
    name = run.folder.name if sweep else "-".join(run.folder.parts[-2:])
    tags = [
        override
        for override in overrides
        if len(override) <= LONGEST_TAG and override.partition("=")[0] not in ("run", "sweep")
    ]
    guarded = Guarded(tracker)
    info = RunInfo(
        folder=run.folder,
        name=name,
        group=sweep,
        tags=tags,
        config=run.config | {"resolved": {name: run.info[name] for name in RESOLVED if name in run.info}},
        run_id=run.info.get("tracker_id"),
        last_step=last_step,
    )
    tracker_id = guarded.start(info)
    if tracker_id:
        run.update(tracker_id=tracker_id)
    succeeded = False
    try:
        with Bar(steps, shown=run.writes) as bar:
            records = Recorder(run, guarded, bar)
            if run.writes:
                records.catch_up(last_step)
            yield records
        succeeded = True
    finally:
        guarded.finish(succeeded)


def peak_memory_gb() -> float:
    """Peak memory so far in GB (10⁹ bytes): of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_memory() / 1e9
