"""Checkpoints: written beside, synced, renamed; a manifest makes a torn one recognisable."""

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
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def save(
    folder: Path,
    step: int,
    parts: Mapping[str, Stateful],
    keep: int,
    losses: Mapping[int, float] | None = None,
    writes: bool = True,
) -> Path:
    """Write step-NNNNNN, then remove all but the newest `keep` and the best by `losses` (step -> val/loss).

    writes: whether this process does so; the others bring their share, where the parts are shared out.
    Parts that hold other things than tensors (optimizers) are saved by torch.save and loaded with weights_only; the
    others are safetensors. Raises OSError if the disk is full; the checkpoints before stay.
    """
    final = folder / f"step-{step:06d}"
    beside = folder / f".{final.name}.tmp"
    states = {name: part.state_dict() for name, part in parts.items()}
    if not writes:
        return final
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    needed, free = _bytes(states), shutil.disk_usage(folder).free
    try:
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")
        for name, state in states.items():
            _write(beside / name, state)
        files = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in beside.iterdir()}
        (beside / "manifest.json").write_text(json.dumps({"step": step, "files": files}, indent=2, sort_keys=True))
        for file in beside.iterdir():
            _sync(file)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # each library has its own for a full disk
        shutil.rmtree(beside, ignore_errors=True)
        before = max(_by_step(folder), key=step_of, default=None)
        raise OSError(
            f"no checkpoint could be written to {folder} at step {step} ({error}); make room, and the same command "
            f"goes on from {before.name if before else 'the start'}"
        ) from error
    if final.exists():  # left by a run that was interrupted and rewound
        shutil.rmtree(final)
    beside.replace(final)
    _sync(folder)
    there = _by_step(folder)
    measured = [checkpoint for checkpoint in there if step_of(checkpoint) in (losses or {})]
    best = min(measured, key=lambda checkpoint: losses[step_of(checkpoint)], default=final)
    for old in set(there[:-keep]) - {final, best}:
        shutil.rmtree(old)
    return final


def _write(path: Path, state: dict[str, Any]) -> None:
    if all(isinstance(value, Tensor) for value in state.values()):
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        safetensors.torch.save_file(tensors, path.with_suffix(".safetensors"))
    else:
        torch.save(state, path.with_suffix(".pt"))


def _bytes(tree: Any) -> int:
    """Of all tensors in a state."""
    if isinstance(tree, Tensor):
        return tree.nbytes
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(_bytes(value) for value in values)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there and whole; a torn one is named in a warning and passed over."""
    for checkpoint in reversed(_by_step(folder)):
        if (damage := _damage(checkpoint)) is None:
            return checkpoint
        log.warning("checkpoint %s is not whole (%s); the one before it is used", checkpoint, damage)
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
                return f"{name} has another checksum"
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
