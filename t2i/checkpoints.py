"""Checkpoints: written beside, synced, renamed; a manifest makes a torn one recognisable."""

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


def save(folder: Path, step: int, parts: Mapping[str, Stateful], keep: int) -> Path:
    """Write step-NNNNNN, then remove all but the newest `keep`.

    Parts that hold other things than tensors (optimizers) are saved by torch.save and loaded with weights_only; the
    others are safetensors.
    """
    final = folder / f"step-{step:06d}"
    beside = folder / f".{final.name}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, part in parts.items():
        state = part.state_dict()
        if all(isinstance(value, Tensor) for value in state.values()):
            tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
            safetensors.torch.save_file(tensors, beside / f"{name}.safetensors")
        else:
            torch.save(state, beside / f"{name}.pt")
    files = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(beside.iterdir())}
    (beside / "manifest.json").write_text(json.dumps({"step": step, "files": files}, indent=2))
    for file in beside.iterdir():
        _sync(file)
    if final.exists():  # left by a run that was interrupted and rewound
        shutil.rmtree(final)
    beside.replace(final)
    _sync(folder)
    for old in [checkpoint for checkpoint in _by_step(folder) if checkpoint != final][: -keep + 1 or None]:
        shutil.rmtree(old)
    return final


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
