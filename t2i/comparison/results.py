"""What runs left in their folders, read without PyTorch and without a tracker."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import ArrowInvalid
from yaml import YAMLError

from t2i.config import ConfigError
from t2i.config.keys import flat
from t2i.evaluation.metrics import Metric
from t2i.runs import config_file
from t2i.runs.config_file import read_config
from t2i.runs.errors_file import read_errors
from t2i.runs.files import in_use, numbered


@dataclass(frozen=True, eq=False)
class Result:
    """One run. What speaks for it is its last validation; `dataclasses.replace(result, step=...)` takes another."""

    folder: Path
    name: str  # of the folder, as short as it can be among the others
    state: str  # finished, stopped, paused, interrupted, failed, running, killed, unreadable, never begun
    reason: str  # why it did not finish; "" if it did
    config: dict[str, Any]  # under dotted keys
    info: dict[str, Any]  # run.json
    lines: list[dict[str, float]]  # metrics.jsonl
    validations: dict[int, Path]  # step -> errors
    step: int | None  # None: nothing was validated

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def choices(self) -> dict[str, str | None]:
        """Config group -> chosen option."""
        return self.info.get("choices", {})

    def setting(self, key: str) -> Any:
        """The option of a config group, or the value of a dotted key; None where there is none."""
        return self.choices[key] if key in self.choices else self.config.get(key)

    @cached_property
    def errors(self) -> dict[str, np.ndarray]:
        """Epsilon errors at `step`, [N, K], of the raw ("") and, if there are, of the averaged weights ("ema/")."""
        file = self.validations[self.step]
        try:
            return read_errors(file)
        except (ArrowInvalid, OSError) as error:
            raise ConfigError(
                f"{file} can't be read ({error}); delete it to use the previous validation step"
            ) from error

    def value(self, metric: Metric) -> float:
        """Not a number where it was not measured."""
        return metric.value(self.errors[metric.weights]) if metric.weights in self.errors else float("nan")

    def change(self, metric: Metric) -> float:
        """Since the validation before the first step, as a share of it; not a number where there was none."""
        start = next((line[metric.name] for line in self.lines if line["step"] == 0 and metric.name in line), None)
        return self.value(metric) / start - 1 if start else float("nan")

    def curve(self, metric: Metric) -> list[tuple[int, float, float]]:
        """Step, hours and value of every validation; hours are not a number where they were not logged."""
        points, hours = [], float("nan")
        for line in self.lines:
            hours = line.get("speed/hours", hours)
            if metric.name in line:
                points.append((line["step"], hours, line[metric.name]))
        return points

    @cached_property
    def latest(self) -> dict[str, float]:
        """The last value of every metric, up to `step`."""
        return {key: value for line in self.lines if self._counts(line) for key, value in line.items()}

    @property
    def hours(self) -> float:
        """Not a number where they were not logged."""
        return self.latest.get("speed/hours", float("nan"))

    @property
    def images_per_second(self) -> float:
        """The median over the log: a pause of the machine does not count."""
        speeds = [line["speed/images_per_second"] for line in self.lines if "speed/images_per_second" in line]
        return float(np.median(speeds)) if speeds else float("nan")

    @property
    def peak_memory_gb(self) -> float:
        return max((line["memory/peak_gb"] for line in self.lines if "memory/peak_gb" in line), default=float("nan"))

    def strip(self) -> tuple[int, Path] | None:
        """The step and the file of the last samples that were drawn, up to `step`."""
        files = numbered(self.folder / "samples", "png")
        steps = [step for step in files if self.step is None or step <= self.step]
        return (max(steps), files[max(steps)]) if steps else None

    def _counts(self, line: dict[str, float]) -> bool:
        return self.step is None or line["step"] <= self.step


def read_results(paths: Sequence[Path]) -> list[Result]:
    """The runs in and below `paths`, by name."""
    folders = []
    for path in paths:
        found = sorted(map(Path.resolve, _run_folders(path)))
        if not found:
            raise ConfigError(f"{path} holds no run (no run.json in it or below it); give a sweep's or a run's folder")
        folders += [folder for folder in found if folder not in folders]
    above = Path(os.path.commonpath([folder.parent for folder in folders]))
    results = [_read(folder, printable(str(folder.relative_to(above)))) for folder in folders]
    return sorted(results, key=lambda result: result.name)


def printable(text: str) -> str:
    """The text without the letters that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _run_folders(path: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(path):
        if "run.json" in files or ".hydra" in below:
            below.clear()
            yield Path(folder)


def _read(folder: Path, name: str) -> Result:
    if not (folder / "run.json").is_file():
        return Result(folder, name, "never begun", "it never began: see train.log", {}, {}, [], {}, None)
    try:
        info, config = json.loads((folder / "run.json").read_text()), {}
        if (folder / config_file.NAME).is_file():  # not in the folder of a job that died before it began
            config = flat(read_config(folder))
    except (ValueError, OSError, YAMLError) as error:
        return Result(folder, name, "unreadable", printable(" ".join(str(error).split())), {}, {}, [], {}, None)
    lines = _lines(folder / "metrics.jsonl")
    measured = {line["step"] for line in lines if "val/loss" in line}
    files = numbered(folder / "validation", "parquet")
    validations = {step: files[step] for step in sorted(measured & set(files))}
    state = info.get("state", "failed")
    if state == "running" and not _is_locked(folder):
        state = "killed"
    done = f"step {lines[-1]['step'] if lines else 0} of {config.get('steps')}"
    reason = {
        "finished": "",
        "stopped": str(info.get("stopped") or "stopped early"),
        "failed": str(info.get("error") or "no reason given"),
        "interrupted": f"interrupted after {done}",
        "paused": f"paused after {done}",
        "killed": f"its process ended without a word after {done}",
        "running": f"at {done}",
    }.get(state, state)
    return Result(
        folder, name, state, printable(reason), config, info, lines, validations, max(validations, default=None)
    )


def _lines(file: Path) -> list[dict[str, float]]:
    if not file.is_file():
        return []
    lines = []
    for text in file.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # a line torn by a crash, or not yet whole
            continue
    return lines


def _is_locked(folder: Path) -> bool:
    """Whether a process works in the folder; where that can't be seen, the state in run.json is believed."""
    try:
        return in_use(folder)
    except OSError:
        return True
