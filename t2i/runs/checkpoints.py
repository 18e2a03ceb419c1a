"""Checkpoints: written to a temporary folder, synced, renamed; a manifest with checksums reveals damage."""

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor

from t2i.config import ConfigError
from t2i.config.out_of_memory import lacking
from t2i.runs.files import LARGEST, NUMBERED, listing, respect_umask
from t2i.runs.host_copies import HostCopies
from t2i.runs.links import read_regular
from t2i.runs.records import METRICS, lost, records, sync, sync_tree, valid_records
from t2i.runs.text import one_line

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class NotSaved(ConfigError, OSError):
    """A checkpoint that the disk has not taken."""


def save(
    folder: Path,
    step: int,
    parts: Mapping[str, Stateful],
    keep: int | str,
    losses: Mapping[int, float] | None = None,
    vouched: Mapping[str, int] | None = None,
    keep_at: Collection[int] = (),
) -> Path:
    """Write the checkpoint of a step from the present state of its parts; for the rest see `write`."""
    states = {name: part.state_dict() for name, part in parts.items()}
    return write(folder, step, states, keep, losses, vouched, keep_at)


def write(
    folder: Path,
    step: int,
    states: Mapping[str, dict[str, Any]],
    keep: int | str,
    losses: Mapping[int, float] | None = None,
    vouched: Mapping[str, int] | None = None,
    keep_at: Collection[int] = (),
) -> Path:
    """Write step-NNNNNN, then remove all checkpoints but the newest `keep` and the best by `losses` (step -> val/loss).

    keep: "all" removes none. keep_at: steps whose checkpoints are not removed, either.
    vouched: the run's records that this checkpoint vouches for, already synced (see t2i.runs.records).
    States that hold only tensors are saved as safetensors, all others (optimizers) by torch.save and loaded with
    weights_only. Raises NotSaved if the disk is full; earlier checkpoints are kept.
    """
    final = folder / f"step-{step:06d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _fill(temporary, step, states, vouched or {})
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # each library has its own for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        if lacking(error) in ("gpu", "host"):
            raise
        before = max(_by_step(folder), key=step_of, default=None)
        raise NotSaved(
            f"the checkpoint of step {step} could not be written to {folder} ({error}); free some disk space and "
            f"run the same command again: it continues from {before.name if before else 'the start'}"
        ) from error
    if final.is_dir():  # left by a run that was interrupted and rewound
        shutil.rmtree(final)
    else:
        final.unlink(missing_ok=True)  # a file has no business here
    temporary.replace(final)
    sync(folder)
    complete, losses = _by_step(folder), losses or {}
    measured = [checkpoint for checkpoint in complete if step_of(checkpoint) in losses]
    best = min(measured, key=lambda checkpoint: losses[step_of(checkpoint)], default=final)
    for old in set(complete[: -int(keep)] if keep != "all" else ()) - {final, best}:
        if step_of(old) not in keep_at:
            shutil.rmtree(old)
    return final


def _fill(folder: Path, step: int, states: Mapping[str, dict[str, Any]], vouched: Mapping[str, int]) -> None:
    """Write the files of a checkpoint into an empty folder, and sync them. OSError if the disk has no room for them."""
    needed, free = size_of(states), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
    for name, state in states.items():
        _write(folder / name, state)
    files = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in folder.iterdir()}
    manifest = {"step": step, "files": files, "records": dict(vouched)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
    respect_umask(folder)
    sync_tree(folder)


def _write(path: Path, state: dict[str, Any]) -> None:
    copies = HostCopies()
    state = copies.of(state, clone=False)
    copies.wait()
    if all(isinstance(value, Tensor) for value in state.values()):
        tensors = {key: value.contiguous() for key, value in state.items()}
        safetensors.torch.save_file(tensors, path.with_suffix(".safetensors"))
    else:
        torch.save(state, path.with_suffix(".pt"))


def size_of(tree: Any) -> int:
    """Total bytes of all tensors in a state."""
    if isinstance(tree, Tensor):
        return tree.nbytes
    values = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(size_of(value) for value in values)


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint; damaged ones are skipped with a warning."""
    return next(_complete(folder), None)


class Processes(Protocol):
    """The processes of a run, which have to use the same checkpoint."""

    is_main: bool

    def told(self, value: Any) -> Any:
        """The main process's value, in every process."""
        ...

    def all_agree(self, answer: bool) -> bool:
        """Whether the answer is yes in every process."""
        ...


class OneProcess(Processes):
    """Has nobody to ask."""

    is_main = True

    def told(self, value: Any) -> Any:
        return value

    def all_agree(self, answer: bool) -> bool:
        return answer


def resume(folder: Path, parts: Mapping[str, Stateful], processes: Processes | None = None) -> int | None:
    """Restore every part from the newest usable checkpoint in `folder`; returns its step, or None if there is none.

    Usable means: its files are complete, its records are in the run folder (the parent of `folder`), and every process
    can load it. The main process looks for it and tells the others. Unusable checkpoints are named in a warning. If
    every checkpoint lacks records, the newest one is used, and what is left of those records is deleted. Raises
    ConfigError if there are checkpoints and none can be loaded.
    """
    processes = processes or OneProcess()
    run, reasons = folder.parent, dict[Path, str]()
    candidates = _candidates(folder) if processes.is_main else iter(())
    while (chosen := processes.told(next(candidates, None))) is not None:
        checkpoint, missing = chosen
        loaded = _try_load(checkpoint, parts, reasons) is not None
        if not processes.all_agree(loaded):
            reasons.setdefault(checkpoint, f"{checkpoint.name}: another process can't load it")
            continue
        if missing and processes.is_main:
            for name in set(missing) - {METRICS}:
                (run / name).unlink(missing_ok=True)
            log.warning("%s: the run continues from %s without these records", run, checkpoint.name)
        return step_of(checkpoint)
    if reasons:
        raise ConfigError(
            f"no checkpoint in {folder} can be loaded ({'; '.join(reasons.values())}); use another run=NAME"
        )
    return None


def _candidates(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The complete checkpoints with the records that are lost, newest first; those with all records come first."""
    lacking_records = []
    for checkpoint in _complete(folder):
        if missing := lost(folder.parent, records_of(checkpoint)):
            log.warning("records of the steps before %s are lost (%s)", checkpoint.name, ", ".join(missing))
            lacking_records.append((checkpoint, missing))
        else:
            yield checkpoint, []
    yield from lacking_records


def _try_load(checkpoint: Path, parts: Mapping[str, Stateful], reasons: dict[Path, str]) -> int | None:
    """The step of the checkpoint if it can be loaded; otherwise None, a warning, and an entry in `reasons`."""
    try:
        return load(checkpoint, parts)
    except Exception as error:  # of pickle, zipfile, PyTorch or a part, for content of another shape
        if lacking(error):  # no fault of the checkpoint
            raise
        reasons[checkpoint] = f"{checkpoint.name}: {one_line(error)}"
        log.warning("checkpoint %s can't be loaded (%s)", checkpoint, reasons[checkpoint])
        return None


def _complete(folder: Path) -> Iterator[Path]:
    """The complete checkpoints, newest first."""
    for checkpoint in reversed(_by_step(folder)):
        if (reason := damage(checkpoint)) is None:
            yield checkpoint
        else:
            log.warning("checkpoint %s is damaged (%s); using the one before it", checkpoint, reason)


def records_of(checkpoint: Path, run: Path | None = None) -> dict[str, int]:
    """What the checkpoint's manifest lists; in the manifests of older versions, every record that is not empty.

    run: the folder of its records, unless the checkpoint lies there.
    """
    listed = json.loads((checkpoint / MANIFEST).read_text()).get("records")
    if isinstance(listed, dict):
        return listed
    run = run or checkpoint.parent.parent
    return {name: max(size, 1) for name, size in records(run, step_of(checkpoint)).items()}


def load(checkpoint: Path, parts: Mapping[str, Stateful]) -> int:
    """Restore every part; returns the step."""
    for name, part in parts.items():
        if (file := checkpoint / f"{name}.safetensors").is_file():
            part.load_state_dict(safetensors.torch.load_file(file))
        else:
            part.load_state_dict(torch.load(checkpoint / f"{name}.pt", map_location="cpu", weights_only=True))
    return step_of(checkpoint)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _by_step(folder: Path) -> list[Path]:
    numbered = [path for path in listing(folder) if NUMBERED.fullmatch(path.name) and path.is_dir()]
    return sorted(numbered, key=step_of)


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint can't be used; None if its files are those that were written.

    Raises PermissionError for what may not be read, which need not be damaged.
    """
    try:
        manifest = json.loads(read_regular(checkpoint / MANIFEST, LARGEST))
        if manifest["step"] != step_of(checkpoint):
            return f"{MANIFEST} is that of step {manifest['step']}"
        if not valid_records(manifest.get("records", {})):
            return f"{MANIFEST} lists records that no run has"
        for name, expected in manifest["files"].items():
            file = checkpoint / name
            if file.parent != checkpoint or not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} has a different checksum"
    except PermissionError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # of any manifest
        return one_line(error)
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
