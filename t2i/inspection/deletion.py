"""Deleting the folders of runs that failed, and of nothing else."""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from t2i.comparison.results import Result
from t2i.config import ConfigError
from t2i.runs.files import lock
from t2i.runs.folder import INFO, read_info
from t2i.runs.links import is_path
from t2i.runs.parentage import complete_steps
from t2i.sweeps.manifest import MANIFEST

NEW = 600  # seconds in which a folder without run.json may be that of a run whose settings are being checked
FAILED = ("failed", "never begun")  # killed and interrupted runs go on with the same command


@dataclass(frozen=True)
class Choice:
    """Which of the failed runs may go, and why the others stay."""

    delete: list[Result]
    keep: dict[Result, str]


def choose(listed: Sequence[Result], others: Sequence[Result] = ()) -> Choice:
    """listed: the runs of which the failed ones are meant. others: further runs, which may go on from these."""
    failed = [run for run in listed if run.state in FAILED]
    everyone = list({run.folder: run for run in (*others, *listed)}.values())
    busy = {
        run.folder.parent: run
        for run in everyone
        if run.state == "running" and (run.folder.parent / MANIFEST).is_file()
    }
    unreadable = [run for run in everyone if run.state == "unreadable"]
    keep: dict[Result, str] = {}
    for run in failed:
        if run.folder.parent in busy:
            keep[run] = f"its sweep is at work, in {busy[run.folder.parent].name}"
        elif run.state == "never begun" and time.time() - _newest(run.folder) < NEW:
            keep[run] = "it may be about to begin"
        elif unreadable and complete_steps(run.folder):
            keep[run] = f"{unreadable[0].name} can't be read, and might go on from a checkpoint of it"
    while True:  # what is kept may itself go on from a run that failed
        needed = {parent: run.name for run in everyone if run not in failed or run in keep for parent in _origins(run)}
        more = {run: f"{needed[run.folder]} goes on from it" for run in failed if run.folder in needed}
        if more.keys() <= keep.keys():
            return Choice([run for run in failed if run not in keep], keep)
        keep = more | keep


def _newest(folder: Path) -> float:
    """When something in a folder was last written, in seconds as time.time() counts them."""
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _origins(run: Result) -> list[Path]:
    """The runs that a run has begun with, also those of which it took the weights alone."""
    parent = run.info.get("parent", {}).get("run")
    own = [Path(os.path.realpath(run.folder / parent))] if is_path(parent) else []
    return own + [folder for folder, _ in run.ancestors]


def delete(run: Result) -> None:
    """Remove a run's folder. Raises ConfigError if a process works there, or if it has not failed any more."""
    folder = run.folder
    try:
        with lock(folder):
            state = read_info(folder).get("state", "failed") if (folder / INFO).exists() else "never begun"
            if state not in FAILED:
                raise ConfigError(f"{folder} is {state} by now; it is kept")
            shutil.rmtree(folder)
    except Timeout as error:
        raise ConfigError(f"{folder} is in use by another process; it is kept") from error


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    files = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files if not file.is_symlink())
