"""The files of a run folder: replaced in one step, locked by the process that works there, numbered by step."""

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from t2i.config import ConfigError
from t2i.config.secrets import redact

LOCK = ".lock"


def atomic_write(path: Path, text: str) -> None:
    """Replace a file atomically: after a crash, the file holds either the old or the new text, without secrets."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(redact(text))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ConfigError, with the remedy, if the file holds anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} can't be read ({' '.join(str(error).split())}); {remedy}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds {type(content).__name__} instead of an object; {remedy}")
    return content


def lock(folder: Path) -> FileLock:
    """The lock of the process that works in `folder`; acquiring it raises filelock.Timeout while another has it."""
    return FileLock(folder / LOCK, timeout=0)


def in_use(folder: Path) -> bool:
    """Whether a process works in `folder`; creates no lock file."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with lock(folder):
            return False
    except Timeout:
        return True


def numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """step -> the file step-NNNNNN.suffix in `folder`, by step."""
    files = {file.stem.removeprefix("step-"): file for file in folder.glob(f"step-*.{suffix}")}
    return {int(step): files[step] for step in sorted(files, key=int)}


def numbered_file(folder: Path, step: int, suffix: str) -> Path:
    return folder / f"step-{step:06d}.{suffix}"
