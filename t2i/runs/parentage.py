"""The run that another run begins with: which checkpoint `from=RUN@STEP` names, and what run.json says of it.

The parent's folder is only read. It may be a stranger's, and a process may be at work in it.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from t2i.config import ConfigError
from t2i.config.keys import belongs, flat
from t2i.runs import config_file
from t2i.runs.changes import FREE_KEYS, OBSERVED, called
from t2i.runs.config_file import read_config
from t2i.runs.files import NUMBERED, listing
from t2i.runs.folder import INFO, has_results, read_info
from t2i.runs.links import is_path
from t2i.runs.records import is_count

MANIFEST = "manifest.json"  # of a complete checkpoint
RESERVED = ".from"  # folder in the new run that holds the parent's checkpoint until the run has one of its own


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A checkpoint of a run that another run begins with."""

    asked: str  # as typed
    folder: Path
    step: int
    only: str | None  # weights or ema; None: the complete state
    config: dict[str, Any]  # by dotted key
    info: dict[str, Any]  # run.json

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / f"step-{self.step:06d}"

    @property
    def name(self) -> str:
        """As it can be typed after from=."""
        return f"{called(self.folder)}@{self.step}"

    def record(self, folder: Path) -> dict[str, Any]:
        """What the run.json of the run in `folder` says of its origin; paths are relative to that folder."""
        before = self.info.get("parent")
        here = {"run": _relative(self.folder, folder), "step": self.step, "only": self.only, "asked": self.asked}
        here |= {"config_hash": self.info.get("config_hash"), "history": self._history()}
        ancestors = [] if self.only else [{"run": here["run"], "step": self.step}]
        if ancestors and isinstance(before, Mapping):
            for run, step in lineage(self.folder, self.info):
                ancestors.append({"run": _relative(run, folder), "step": min(step, self.step)})
        return {"parent": here, "ancestors": ancestors}

    def _history(self) -> str:
        """A hash of how the checkpoint came about, without the seed: equal for the runs of one setting."""
        before = self.info.get("parent")
        own = {
            key: self.config[key]
            for key in sorted(self.config)
            if not belongs(key, (*FREE_KEYS, *OBSERVED, "seed", "from"))
        }
        whole = [own, self.step, before.get("history") if isinstance(before, dict) else None]
        return hashlib.sha256(json.dumps(whole, default=str).encode()).hexdigest()[:16]


def split(text: str) -> tuple[str, int | None]:
    """RUN@STEP as RUN and the step; None without one."""
    place, _, step = text.rpartition("@")
    return (place, int(step)) if place and re.fullmatch(r"[0-9]{1,18}", step) else (text, None)


def find_run(place: str) -> Path | None:
    """The run that a path names, or a name in multirun/; None if there is none."""
    try:
        candidates = (Path(place).expanduser(), Path("multirun") / place)
        return next((path for path in candidates if (path / config_file.NAME).is_file()), None)
    except (OSError, RuntimeError, ValueError):  # a name that is too long, ~NAME of nobody, a null character
        return None


def find_parent(asked: str | None, only: str | None, folder: Path, again: bool = False) -> Parent | None:
    """The checkpoint of a run that the run in `folder` begins with; None if it begins with no run, or goes on.

    A run that has begun keeps to the step that it began with. again: also of a run that goes on, as none of its own
    checkpoints can be used. Raises ConfigError, with the remedy, if there is no such run or checkpoint, and if the
    folder holds a run of another origin.
    """
    recorded = _recorded(folder)
    if asked is None:
        if recorded is not None:
            origin = recorded.get("asked")
            raise ConfigError(f"{folder} holds a run that began with another; add from={origin} to go on with it")
        return None
    place, step = split(asked)
    run = find_run(place)
    if run is not None and os.path.realpath(run) == os.path.realpath(folder):
        raise ConfigError(f"from={asked} is the run itself; give the new run a name of its own with run=NAME")
    if _has_begun(folder) and recorded is None and run is not None:
        raise ConfigError(f"{folder} holds a run that did not begin with {asked}; use another run=NAME for the new one")
    if recorded is not None:
        _refuse_another(folder, recorded, asked, run, step)
        if _goes_on(folder) and not again:
            return None
        step = recorded["step"]
    if run is None:
        if recorded is not None or _looks_like_run(asked):
            raise ConfigError(_no_run(asked, place))
        return None  # weights of another tool
    return _open(asked, run, step, only, folder if recorded is not None else None)


def _open(asked: str, run: Path, step: int | None, only: str | None, began: Path | None) -> Parent:
    """began: the folder of a run that began with this checkpoint before, and may hold it."""
    steps = complete_steps(run)
    if step is None and not steps:
        raise ConfigError(
            f"from={asked}: {run} has no complete checkpoint yet; wait for one, or let that run save one (save_every)"
        )
    step = steps[-1] if step is None else step
    if step not in steps and not (began is not None and reserved(began, step).is_dir()):
        held = f"it holds those of the steps {', '.join(map(str, steps))}" if steps else "it holds none"
        missing = "is not there any more" if began is not None else "is not there"
        raise ConfigError(
            f"from={asked}: the checkpoint of step {step} of {run} {missing} ({held}); choose one of these, and keep "
            f"more with keep_checkpoints=all or keep_at=[{step}] in the run that writes them"
        )
    info = read_info(run) if (run / INFO).is_file() else {}
    return Parent(asked=asked, folder=run, step=step, only=only, config=flat(read_config(run)), info=info)


def complete_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints that have been written to the end; whether they are undamaged is not checked."""
    found = [path for path in listing(run / "checkpoints") if (path / MANIFEST).is_file()]
    return sorted(int(match[1]) for path in found if (match := NUMBERED.fullmatch(path.name)))


def reserved(folder: Path, step: int) -> Path:
    """Where the run in `folder` keeps the checkpoint that it begins with, until it has one of its own."""
    return folder / RESERVED / f"step-{step:06d}"


def reserve(parent: Parent, folder: Path) -> Path:
    """Hold the parent's checkpoint, which a running parent may remove; returns where it can be read.

    The files get a second name in the new run, which costs no space; where that can't be, they are read where they are.
    """
    place = reserved(folder, parent.step)
    if place.is_dir():
        return place
    if folder.stat().st_dev != parent.checkpoint.stat().st_dev:
        return parent.checkpoint
    temporary = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for file in parent.checkpoint.iterdir():
            if file.is_symlink() or not file.is_file():
                raise OSError(f"{file} is not a file")
            os.link(file, temporary / file.name)
        temporary.replace(place)
    except OSError:  # no links on this file system, or none to files of another user
        shutil.rmtree(place.parent, ignore_errors=True)
        return parent.checkpoint
    return place


def release(folder: Path) -> None:
    """Let go of the parent's checkpoint: the run has one of its own."""
    shutil.rmtree(folder / RESERVED, ignore_errors=True)


def lineage(folder: Path, info: Mapping[str, Any]) -> list[tuple[Path, int]]:
    """The runs whose steps a run continues, and up to which step, the nearest first. Damaged entries are left out."""
    found = []
    ancestors = info.get("ancestors")
    for entry in ancestors if isinstance(ancestors, list) else ():
        if isinstance(entry, dict) and is_path(entry.get("run")) and is_count(entry.get("step")):
            found.append((Path(os.path.realpath(folder / entry["run"])), entry["step"]))
    return found


def _recorded(folder: Path) -> dict[str, Any] | None:
    """The origin of a run that has begun with another run's checkpoint."""
    if not _has_begun(folder):
        return None
    parent = read_info(folder).get("parent")
    known = isinstance(parent, dict) and is_count(parent.get("step")) and is_path(parent.get("run"))
    return parent if known else None


def _has_begun(folder: Path) -> bool:
    return (folder / INFO).is_file() and has_results(folder)


def _goes_on(folder: Path) -> bool:
    """Whether the run has a checkpoint of its own, or is finished: it needs its parent no more."""
    return bool(complete_steps(folder)) or read_info(folder).get("state") == "finished"


def _refuse_another(folder: Path, recorded: Mapping[str, Any], asked: str, run: Path | None, step: int | None) -> None:
    before = f"{recorded.get('asked')}"
    same_place = run is not None and os.path.realpath(run) == os.path.realpath(folder / recorded["run"])
    if not (same_place or split(asked)[0] == split(before)[0]) or step not in (None, recorded["step"]):
        raise ConfigError(
            f"{folder} holds a run that began with {before} at step {recorded['step']}, not with {asked}; use another "
            "run=NAME for the new one"
        )


def _looks_like_run(asked: str) -> bool:
    """Whether it can't be weights of another tool: a name without a slash, or with a step."""
    place, step = split(asked)
    is_place = Path(place).expanduser().exists() if not place.startswith("~") else True
    return step is not None or not (is_place or "/" in place or place.endswith(".safetensors"))


def _no_run(asked: str, place: str) -> str:
    runs = sorted(str(file.parent.relative_to("multirun")) for file in Path("multirun").glob(f"*/{config_file.NAME}"))
    if "@" in place and find_run(place.rpartition("@")[0]):
        return (
            f"from={asked}: what stands behind @ must be the number of a step, such as {place.rpartition('@')[0]}@1000"
        )
    known = f"multirun/ has {', '.join(runs[:8])}" if runs else "multirun/ has none"
    if nearest := get_close_matches(place, runs, n=1):
        known = f"did you mean {nearest[0]}? {known}"
    return f"from={asked}: there is no run {place} (no {config_file.NAME} in it, or in multirun/{place}; {known})"


def _relative(run: Path, folder: Path) -> str:
    return os.path.relpath(os.path.realpath(run), os.path.realpath(folder))
