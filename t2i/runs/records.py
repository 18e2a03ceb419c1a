"""The records of a run: metrics, validation errors, samples, averages. A checkpoint vouches for those before it.

A power cut takes everything that was not synced to the disk. The records are therefore synced before the checkpoint is
renamed, and the checkpoint's manifest lists them with their sizes, so that a run never continues with a gap.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from t2i.config import ConfigError
from t2i.runs.files import numbered, remove_leftovers

METRICS = "metrics.jsonl"
SNAPSHOTS = "averages"  # folder of the averages that ema=post_hoc stores
LARGEST = 2_000_000_000  # bytes of metrics.jsonl: a line for each of some million steps
LONGEST = 1_000_000  # bytes of a line; those with a validation have some thousand
RECORD = re.compile(
    r"metrics\.jsonl|validation/(?:train/|reference/)?step-[0-9]+\.parquet|samples/step-[0-9]+\.png|"
    r"averages/step-[0-9]+\.safetensors"
)
# Battery -> the folder of its errors, and its headline; {} is "" for the raw weights and "ema/" for averaged ones.
ERRORS = {"": "validation", "train/": "validation/train", "ref/": "validation/reference"}
REPLACED = {  # what only the process that holds the run writes: folder -> suffixes
    "": (".json", ".yaml", ".jsonl"),
    **dict.fromkeys(ERRORS.values(), (".parquet",)),
    "samples": (".png",),
    SNAPSHOTS: (".safetensors",),
}
HEADLINES = {"": "val/{}loss", "train/": "val/{}train_loss", "ref/": "ref/{}loss"}


def headline(metrics: Mapping[str, float]) -> str:
    """The metric that a validation is judged by: that of held-out images, or of training images if it is the only one.

    "" if there was no validation.
    """
    names = (HEADLINES[battery].format("") for battery in ("", "train/"))
    return next((name for name in names if name in metrics), "")


def read_metrics(run: Path) -> dict[str, dict[str, float]]:
    """The lines of metrics.jsonl: text -> its metrics, with the step. Torn and damaged lines are left out."""
    file = run / METRICS
    texts = lines_of(file) if file.is_file() else ()
    lines = ((text, parse_metrics(text)) for text in texts)
    return {text: line for text, line in lines if line is not None}


def count_damaged(run: Path) -> int:
    """The number of lines in metrics.jsonl that `read_metrics` leaves out, but for a last one that a crash has torn."""
    return sum(
        parse_metrics(text.removesuffix("\n")) is None
        for text in lines_of(run / METRICS, keepends=True)
        if text.endswith("\n")
    )


def lines_of(file: Path, keepends: bool = False) -> Iterator[str]:
    """The lines of metrics.jsonl; of one that is longer than any that t2i writes, the pieces."""
    if (size := file.stat().st_size) > LARGEST:
        raise ConfigError(
            f"{file} can't be read (it has {size} bytes); restore the file from a copy, or use another run"
        )
    with file.open("rb") as stream:
        while line := stream.readline(LONGEST):
            text = line.decode(errors="replace")
            yield text if keepends else text.removesuffix("\n")


def parse_metrics(text: str) -> dict[str, float] | None:
    """The metrics in a line of metrics.jsonl, with the step; None if it holds anything else."""
    try:
        line = json.loads(text)
        if isinstance(line, dict) and is_count(line.get("step")) and all(map(is_number, line.values())):
            return line
    except (ValueError, RecursionError):
        pass
    return None


def is_count(value: Any) -> bool:
    """Whether the value of a JSON file is a number that counts steps or bytes."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18


def is_number(value: Any) -> bool:
    """Whether the value of a JSON file is a number, NaN and infinity included, that fits a float."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**18)


def valid_records(listed: Any) -> bool:
    """Whether the records that a manifest lists can be those of a run: sizes of files of the run folder."""
    return isinstance(listed, dict) and all(RECORD.fullmatch(name) and is_count(listed[name]) for name in listed)


def records(run: Path, step: int) -> dict[str, int]:
    """The records of the steps up to `step`: path below the run folder -> size in bytes."""
    files = [run / METRICS] if (run / METRICS).is_file() else []
    for kind, suffix in (
        *((folder, "parquet") for folder in ERRORS.values()),
        ("samples", "png"),
        (SNAPSHOTS, "safetensors"),
    ):
        files += [file for number, file in numbered(run / kind, suffix).items() if number <= step]
    return {file.relative_to(run).as_posix(): file.stat().st_size for file in files}


def tidy(run: Path) -> None:
    """Remove what a killed process left of the run's files that it was writing; the caller holds the run's lock."""
    for folder, suffixes in REPLACED.items():
        remove_leftovers(run / folder, suffixes)


def lost(run: Path, expected: Mapping[str, int]) -> list[str]:
    """The records that are missing, or of another size; metrics.jsonl may have grown since."""
    return [name for name, size in expected.items() if not _is_complete(run / name, size)]


def _is_complete(file: Path, size: int) -> bool:
    found = file.stat().st_size if file.is_file() else -1
    return found >= size if file.name == METRICS else found == size


class RecordSync:
    """Writes the records of a run to the disk, each file once."""

    def __init__(self, run: Path):
        self.run, self.synced = run, set[str]()

    def __call__(self, step: int) -> dict[str, int]:
        """Sync the records of the steps up to `step` and the folders that hold them; returns their sizes."""
        found = records(self.run, step)
        new = found.keys() - self.synced
        for name in new:
            sync(self.run / name)
        for folder in {(self.run / name).parent for name in new} | {self.run}:
            sync(folder)
        if not self.synced:  # the first time: the run folder and its parents may be new
            for parent in self.run.resolve().parents:
                sync(parent)
        self.synced |= new - {METRICS}  # which grows
        return found


def sync(path: Path) -> None:
    """Write a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Write a folder and everything below it to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))
