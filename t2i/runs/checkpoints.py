"""Checkpoints: written to a temporary folder, synced, renamed; a manifest with checksums reveals damage."""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def save(
    folder: Path,
    step: int,
    parts: Mapping[str, Stateful],
    keep: int,
    losses: Mapping[int, float] | None = None,
    writes: bool = True,
) -> Path:
    """Write step-NNNNNN, then remove all checkpoints but the newest `keep` and the best by `losses` (step -> val/loss).

    writes: whether this process writes; the other processes only contribute their slices of sharded parts.
    Parts that hold only tensors are saved as safetensors, all others (optimizers) by torch.save and loaded with
    weights_only. Raises OSError if the disk is full; earlier checkpoints are kept.
    """
    final = folder / f"step-{step:06d}"
    temporary = folder / f".{final.name}.tmp"
    states = {name: part.state_dict() for name, part in parts.items()}
    if not writes:
        return final
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    needed, free = _bytes(states), shutil.disk_usage(folder).free
    try:
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
        for name, state in states.items():
            _write(temporary / name, state)
        files = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in temporary.iterdir()}
        (temporary / "manifest.json").write_text(json.dumps({"step": step, "files": files}, indent=2, sort_keys=True))
        for file in temporary.iterdir():
            _sync(file)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # each library has its own for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        before = max(_by_step(folder), key=step_of, default=None)
        raise OSError(
            f"the checkpoint of step {step} could not be written to {folder} ({error}); free some disk space and "
            f"run the same command again: it continues from {before.name if before else 'the start'}"
        ) from error
    if final.exists():  # left by a run that was interrupted and rewound
        shutil.rmtree(final)
    temporary.replace(final)
    _sync(folder)
    complete, losses = _by_step(folder), losses or {}
    measured = [checkpoint for checkpoint in complete if step_of(checkpoint) in losses]
    best = min(measured, key=lambda checkpoint: losses[step_of(checkpoint)], default=final)
    for old in set(complete[:-keep]) - {final, best}:
        shutil.rmtree(old)
    return final


def _write(path: Path, state: dict[str, Any]) -> None:
    if all(isinstance(value, Tensor) for value in state.values()):
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        safetensors.torch.save_file(tensors, path.with_suffix(".safetensors"))
    else:
        torch.save(state, path.with_suffix(".pt"))


def _bytes(tree: Any) -> int:
    """Total bytes of all tensors in a state."""
    if isinstance(tree, Tensor):
        return tree.nbytes
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(_bytes(value) for value in values)


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint; damaged ones are skipped with a warning."""
    for checkpoint in reversed(_by_step(folder)):
        if (damage := _damage(checkpoint)) is None:
            return checkpoint
        log.warning("checkpoint %s is damaged (%s); using the one before it", checkpoint, damage)
    return None


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
    numbered = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(numbered, key=step_of)


def _damage(checkpoint: Path) -> str | None:
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
        for name, expected in files.items():
            file = checkpoint / name
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} has a different checksum"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
