"""Files of caches: made by one process at a time, on the disk before they are visible, and made anew if damaged."""

import errno
import hashlib
import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from t2i.config import ConfigError
from t2i.runs.files import atomic_write
from t2i.runs.links import read_regular
from t2i.runs.records import sync
from t2i.runs.text import one_line

log = logging.getLogger(__name__)
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LARGEST = 2_000_000_000  # bytes of a memo; the facts of an image take some 150
CHECKSUM = ""  # the key of a memo's checksum; no file has this name
CACHE_DIR = "cache_dir"


@contextmanager
def locked(file: Path, setting: str = CACHE_DIR) -> Generator[None]:
    """Within, no other process makes `file`. setting: the one that places the cache.

    Raises ConfigError if the cache can't be written, or if something else stands in the place of the file.
    """
    with held(file.with_suffix(".lock"), setting):
        refuse_other_kinds(file)
        yield


def refuse_other_kinds(file: Path) -> None:
    """Refuse a folder in the place of a file of the cache, and a pipe or device, which may never end."""
    if file.exists() and not file.is_file():
        kind = "a folder" if file.is_dir() else "a pipe or a device"
        raise ConfigError(f"{file} is {kind} instead of a file of the cache; delete it")


@contextmanager
def held(lock_file: Path, setting: str = CACHE_DIR) -> Generator[None]:
    """Within, no other process holds the lock; ConfigError if the cache can't be written."""
    folder = lock_file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_file)
        lock.acquire()
    except OSError as error:
        raise unwritable(folder, error, setting) from error
    try:
        yield
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise unwritable(folder, error, setting) from error
        raise
    finally:
        lock.release()


def unwritable(folder: Path, error: OSError, setting: str) -> ConfigError:
    reason = error.strerror or " ".join(str(error).split())
    return ConfigError(
        f"{setting}: the cache can't be written in {folder} ({reason}); free space there, make it writable, or use "
        f"another {setting}"
    )


@contextmanager
def publishing(temporary: Path, file: Path) -> Generator[None]:
    """Within, which is where the cache is locked, a new file is written to `temporary`; it then gets its final name.

    What stands at `temporary`, such as the beginning that a killed process left or a link, is removed first.
    """
    temporary.unlink(missing_ok=True)
    try:
        yield
        publish(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, file: Path) -> None:
    """Give a complete file its final name, under which it is on the disk also after a power cut."""
    sync(temporary)
    temporary.replace(file)
    sync(file.parent)


def write_memo(file: Path, content: dict[str, Any]) -> None:
    """Store an object as JSON, with its checksum."""
    atomic_write(file, json.dumps({CHECKSUM: _checksum(content), **content}))
    sync(file.parent)


def read_memo(file: Path) -> dict[str, Any] | None:
    """The object in a memo; None if there is none, or if it is damaged, of which a warning tells.

    Memos that were written before have no checksum, so that the caller has to check the values.
    """
    try:
        content = json.loads(read_regular(file, LARGEST))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{file}, a file of the cache, can't be read ({error.strerror}); delete it") from error
    except (ValueError, RecursionError) as error:
        warn_of_damage(file, " ".join(str(error).split()))
        return None
    if not isinstance(content, dict):
        warn_of_damage(file, f"it holds {type(content).__name__} instead of an object")
        return None
    checksum = content.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(content):
        warn_of_damage(file, "its checksum differs")
        return None
    return content


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def passing_over_damage(file: Path) -> Generator[None]:
    """Within, `file` is read; what is wrong with its content ends the block with a warning.

    Raises ConfigError if it may not be read, and lets a lack of memory through: the file itself is right.
    """
    try:
        yield
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # safetensors, Arrow and `datasets` raise anything
        if isinstance(error, OSError) and (isinstance(error, PermissionError) or error.errno == errno.ENOMEM):
            raise ConfigError(f"{file}, a file of the cache, can't be read ({error.strerror})") from error
        warn_of_damage(file, one_line(error))


def warn_of_damage(file: Path, problem: str) -> None:
    log.warning("%s, a file of the cache, is damaged (%s); it is made anew", file, problem)
