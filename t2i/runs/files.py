"""The files of a run folder: replaced in one step, locked by the process that works there, numbered by step."""

import json
import os
import re
import secrets
import stat
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from t2i.config import ConfigError
from t2i.config.secrets import redact
from t2i.runs.full_disk import naming
from t2i.runs.links import read_regular
from t2i.runs.text import PERMIT, one_line

LOCK = ".lock"
LARGEST = 50_000_000  # bytes of a JSON file; those of large sweeps have some hundred thousand
DEEPEST = 100  # levels of nested content; t2i writes fewer than ten
NUMBERED = re.compile(r"step-([0-9]{1,18})")
LEFTOVER = re.compile(r"\.[0-9a-f]{8}(\.\w+)?")  # what `replacing` writes to
Types = Mapping[str, type | tuple[type, ...]]


def atomic_write(path: Path, text: str) -> None:
    """Replace a file atomically: after a crash, the file holds either the old or the new text, without secrets."""
    with (
        replacing(path) as temporary,
        naming(path),
        # A name of a file that is not UTF-8 ends up in errors; JSON has the same escapes as backslashreplace.
        open(temporary, "x", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(redact(text))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yields where to write a file, which replaces `path` at the end of the block: nobody finds it half written.

    Its name, which ends as that of `path`, can't be guessed, so that no link waits there, and several processes may
    write at once. After an error nothing is left. What is no file, such as /dev/stdout, is written to itself.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = path.with_name(f".{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            # PyArrow's have no name, but one in the text.
            error.filename, error.strerror = str(path), os.strerror(error.errno)
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path, suffixes: Collection[str], age: float = 0.0) -> None:
    """Remove what killed processes left of the files in a folder that they were replacing.

    suffixes: of files that no other process replaces now. age: the seconds for which nothing was written to them.
    """
    for file in folder.iterdir() if folder.is_dir() else ():
        if LEFTOVER.fullmatch(file.name) and file.suffix in suffixes and not file.is_dir():
            with suppress(FileNotFoundError):  # its process has replaced it
                if time.time() - file.lstat().st_mtime >= age:
                    file.unlink()


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ConfigError, with the remedy, if the file holds anything else."""
    try:
        content = json.loads(read_regular(file, LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(file, error, remedy) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds {type(content).__name__} instead of an object; {remedy}")
    refuse_deep(content, file, remedy)
    return content


def unreadable(file: Path, error: Exception, remedy: str) -> ConfigError:
    """What to raise for a file that can't be read. remedy: if its content is damaged, not just forbidden to be read."""
    return ConfigError(
        f"{file} can't be read ({one_line(error)}); {PERMIT if isinstance(error, PermissionError) else remedy}"
    )


def refuse_deep(content: Any, file: Path, remedy: str) -> None:
    """Raise ConfigError if a file's content is nested so deeply that no recursive function can walk it."""
    level = [content]
    for _ in range(DEEPEST):
        children = [
            node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)
        ]
        level = [child for several in children for child in several]
        if not level:
            return
    raise ConfigError(f"{file} is nested more than {DEEPEST} levels deep; {remedy}")


def check_fields(content: Mapping[str, Any], types: Types, file: Path, remedy: str) -> None:
    """Raise ConfigError if a field of a file's content has another type than `types` says. Missing fields are fine."""
    for key, expected in types.items():
        value = content.get(key)
        if key in content and (not isinstance(value, expected) or (isinstance(value, bool) and expected is int)):
            raise ConfigError(f"{file}: {key} is of the wrong type, {type(value).__name__}; {remedy}")


def respect_umask(folder: Path) -> None:
    """Give the files below a folder the permissions of any new file: safetensors creates them for their owner alone."""
    umask = os.umask(0o077)  # which can't be read without setting it
    os.umask(umask)
    for parent, _, names in os.walk(folder):
        for file in (Path(parent) / name for name in names):
            if not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) == 0o600:
                file.chmod(0o666 & ~umask)


def lock(folder: Path, patience: float = 0) -> FileLock:
    """The lock of the process that works in `folder`; acquiring it raises filelock.Timeout while another has it.

    patience: seconds to wait for it; whoever only looks, as `in_use` does, has it for a moment.
    """
    return FileLock(folder / LOCK, timeout=patience)


def in_use(folder: Path) -> bool:
    """Whether a process works in `folder`; creates no lock file."""
    if (folder / LOCK).is_symlink() or not (folder / LOCK).is_file():  # t2i locks no link: that would empty its target
        return False
    try:
        with lock(folder):
            return False
    except Timeout:
        return True


def listing(folder: Path) -> list[Path]:
    """What is in a folder; [] if there is no such folder. Path.glob finds nothing in one that may not be read."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """step -> the file step-NNNNNN.suffix in `folder`, by step."""
    of_kind = (file for file in listing(folder) if file.suffix == f".{suffix}")
    files = {file: NUMBERED.fullmatch(file.stem) for file in of_kind if file.is_file()}
    return dict(sorted((int(match[1]), file) for file, match in files.items() if match))


def numbered_file(folder: Path, step: int, suffix: str) -> Path:
    return folder / f"step-{step:06d}.{suffix}"
