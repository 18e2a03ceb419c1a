"""What runs left in their folders, read without PyTorch and without a tracker."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from t2i.config import ConfigError
from t2i.config.keys import flat
from t2i.evaluation.metrics import Metric
from t2i.evaluation.score_metric import ScoreMetric
from t2i.runs import config_file
from t2i.runs.config_file import read_config
from t2i.runs.errors_file import read_errors
from t2i.runs.files import check_fields, in_use, listing, numbered, numbered_file
from t2i.runs.folder import INFO, read_info
from t2i.runs.image_files import ImageFiles, all_images
from t2i.runs.parentage import lineage
from t2i.runs.records import ERRORS, headline, is_count, read_metrics
from t2i.runs.scores_file import StoredScores, read_scores, stored_metrics
from t2i.runs.text import one_line, printable

TYPES = {"seed": (int, type(None)), "steps": (int, type(None)), "samples.prompts": list}  # of config.yaml


@dataclass(frozen=True, eq=False)
class Result:
    """One run at its last validation; `dataclasses.replace(result, step=...)` is the run at another one."""

    folder: Path
    name: str  # the folder's path below what all runs have in common
    state: str  # finished, stopped, paused, interrupted, failed, running, killed, unreadable, never begun
    reason: str  # why the run did not finish; "" if it did
    config: dict[str, Any]  # by dotted key
    info: dict[str, Any]  # run.json
    lines: list[dict[str, float]]  # metrics.jsonl
    validations: dict[int, Path]  # step -> file of errors
    step: int | None  # None: nothing was validated

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def battery(self) -> str:
        """The prefix of the errors that the run is judged by: "" for held-out images, "train/" for training images."""
        return "train/" if self.info.get("battery", {}).get("on") == "train" else ""

    @property
    def fold(self) -> int | None:
        """Which of several parts of the data set it held out; None if there are none."""
        fold = self.info.get("battery", {}).get("fold")
        return fold if is_count(fold) else None

    @property
    def stopped_early_at(self) -> int | None:
        """The step at which early_stop ended the run; None if it went to its last step."""
        step = self.info.get("early_stop", {}).get("step")
        return step if is_count(step) else None

    @cached_property
    def ancestors(self) -> list[tuple[Path, int]]:
        """The runs that it goes on from, and up to which step of each, the nearest first."""
        return lineage(self.folder, self.info)

    @property
    def forked_at(self) -> int:
        """The step at which it began to differ from the run that it goes on from; 0 if it began by itself."""
        return self.ancestors[0][1] if self.ancestors else 0

    @property
    def choices(self) -> dict[str, str | None]:
        """Config group -> chosen option."""
        return self.info.get("choices", {})

    def has(self, key: str) -> bool:
        """Whether the configuration has this group or dotted key."""
        return key in self.choices or key in self.config

    def config_value(self, key: str) -> Any:
        """The option of a config group, or the value of a dotted key; None if the configuration has neither."""
        return self.choices[key] if key in self.choices else self.config.get(key)

    @cached_property
    def errors(self) -> dict[str, np.ndarray]:
        """Epsilon errors at `step`, [N, K], by prefix: of a battery, then "" for raw and "ema/" for averaged weights.

        Raises ConfigError if a file is damaged.
        """
        assert self.step is not None, f"{self.name} was not validated"
        return self.errors_at(self.step)

    def errors_at(self, step: int) -> dict[str, np.ndarray]:
        """The same at another validation."""
        errors = {}
        for battery, folder in ERRORS.items():
            file = numbered_file(self.folder / folder, step, "parquet")
            if battery == self.battery or file.is_file():
                errors |= {f"{battery}{weights}": values for weights, values in read_errors(file).items()}
        return errors

    @cached_property
    def damage(self) -> str:
        """Why the errors at `step` can't be read; "" if they can, or if there are none."""
        try:
            _ = self.errors if self.step is not None else None
        except ConfigError as error:
            return one_line(error)
        return ""

    @cached_property
    def images(self) -> list[ImageFiles]:
        """Images at `step`, of any number of batteries. Those that are damaged are left out."""
        try:
            found = all_images(self.folder)
        except (ConfigError, OSError):
            return []
        return [images for (_, step), images in found.items() if step == self.step]

    @cached_property
    def scores(self) -> dict[tuple[str, str], StoredScores]:
        """(hash of the image battery, metric) -> scores of the images at `step`."""
        found = {}
        for images in self.images:
            for name in stored_metrics(images.folder):
                with suppress(ConfigError):
                    found[images.hash, name] = read_scores(images.folder, name)
        return found

    def value(self, metric: Metric | ScoreMetric) -> float:
        """NaN if the metric was not measured, or its errors can't be read."""
        if isinstance(metric, ScoreMetric):
            scores = self.scores.get((metric.battery, metric.name))
            return scores.value if scores else float("nan")
        if self.damage:
            return float("nan")
        return metric.of(self.errors) if metric.measured_in(self.errors) else float("nan")

    def change(self, metric: Metric | ScoreMetric) -> float:
        """Relative change since the validation before the first step, of a gap that of the ratio; NaN without it."""
        start = next((line[metric.logged] for line in self.lines if line["step"] == 0 and metric.logged in line), None)
        if start is None or (start == 0 and metric.against is None):
            return float("nan")
        return float(metric.ratio(self.value(metric), start))

    def curve(self, metric: Metric | ScoreMetric) -> list[tuple[int, float, float]]:
        """Step, hours and value at every validation; hours are NaN if they were not logged."""
        points, hours = [], float("nan")
        for line in self.lines:
            hours = line.get("speed/hours", hours)
            if metric.logged in line:
                points.append((int(line["step"]), hours, line[metric.logged]))
        return points

    @cached_property
    def latest(self) -> dict[str, float]:
        """The last value of every metric, up to `step`."""
        lines = [line for line in self.lines if self.step is None or line["step"] <= self.step]
        return {key: value for line in lines for key, value in line.items()}

    @property
    def hours(self) -> float:
        """The duration of the run's own training; NaN if it was not logged."""
        before = self.hours_at(self.forked_at) if self.ancestors else 0.0
        return self.latest.get("speed/hours", float("nan")) - before

    def hours_at(self, step: int) -> float:
        """The hours of all training up to a step, also that of the runs that it goes on from; NaN if not logged."""
        logged = [line["speed/hours"] for line in self.lines if line["step"] <= step and "speed/hours" in line]
        return logged[-1] if logged else float("nan")

    @property
    def own_lines(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl that no other run has logged before."""
        return [line for line in self.lines if line["step"] > self.forked_at] if self.ancestors else self.lines

    @property
    def images_per_second(self) -> float:
        """The median over the log, which ignores pauses of the machine."""
        speeds = [line["speed/images_per_second"] for line in self.own_lines if "speed/images_per_second" in line]
        return float(np.median(speeds)) if speeds else float("nan")

    @property
    def peak_memory_gb(self) -> float:
        return max(
            (line["memory/peak_gb"] for line in self.own_lines if "memory/peak_gb" in line), default=float("nan")
        )

    def latest_samples(self) -> tuple[int, Path] | None:
        """Step and file of the last samples that were drawn with the run's settings of today, up to `step`."""
        files, since = numbered(self.folder / "samples", "png"), self.info.get("samples_since", -1)
        steps = [step for step in files if step > since and (self.step is None or step <= self.step)]
        return (max(steps), files[max(steps)]) if steps else None


def read_results(paths: Sequence[Path]) -> list[Result]:
    """The runs in and below `paths`, sorted by name."""
    folders: list[Path] = []
    for path in paths:
        runs = sorted(map(Path.resolve, _run_folders(path)))
        if not runs:
            raise ConfigError(
                f"{path} holds no run (no run.json in it or below it); pass the folder of a sweep or a run"
            )
        folders += [folder for folder in runs if folder not in folders]
    parent = Path(os.path.commonpath([folder.parent for folder in folders]))
    results = [_read(folder, printable(str(folder.relative_to(parent)))) for folder in folders]
    return sorted(results, key=lambda result: result.name)


def _run_folders(path: Path) -> Iterator[Path]:
    closed: list[Path] = []

    def note(error: OSError) -> None:
        if isinstance(error, PermissionError):
            closed.append(Path(error.filename))

    for folder, subfolders, files in os.walk(path, onerror=note):
        if INFO in (*files, *subfolders) or ".hydra" in subfolders:
            subfolders.clear()
            yield Path(folder)
    yield from closed


def _read(folder: Path, name: str) -> Result:
    try:
        if not (folder / INFO).exists():
            return Result(folder, name, "never begun", "it never started; see train.log", {}, {}, [], {}, None)
        info, config = read_info(folder), {}
        if (folder / config_file.NAME).exists():  # a job that died early has none
            config = flat(read_config(folder))
            check_fields(config, TYPES, folder / config_file.NAME, config_file.REMEDY)
        lines = list(read_metrics(folder).values())
        files = numbered(folder / ERRORS["train/" if info.get("battery", {}).get("on") == "train" else ""], "parquet")
        for kind in ("samples", "images"):
            listing(folder / kind)  # raises for a folder that may not be read
    except (ConfigError, OSError) as error:
        return Result(folder, name, "unreadable", one_line(error), {}, {}, [], {}, None)
    measured = {int(line["step"]) for line in lines if headline(line)}
    validations = {step: files[step] for step in sorted(measured & set(files))}
    state = info.get("state", "failed")
    if state == "running" and not _is_locked(folder):
        state = "killed"
    progress = f"step {lines[-1]['step'] if lines else 0} of {config.get('steps')}"
    reason = _reason(state, info, progress)
    step = max(validations, default=None)
    return Result(folder, name, printable(state), printable(reason), config, info, lines, validations, step)


def _reason(state: str, info: dict[str, Any], progress: str) -> str:
    """Why a run in this state has not finished; "" if it has."""
    reasons = {
        "finished": "",
        "stopped": str(info.get("stopped") or "stopped early"),
        "failed": str(info.get("error") or "no reason given"),
        "interrupted": f"interrupted after {progress}",
        "paused": f"paused after {progress}",
        "killed": f"the process died without reporting an error after {progress}",
        "running": f"still running, at {progress}",
    }
    return reasons.get(state, state)


def _is_locked(folder: Path) -> bool:
    """Whether a process works in the folder; True where that can't be determined, so that run.json is believed."""
    try:
        return in_use(folder)
    except OSError:
        return True
