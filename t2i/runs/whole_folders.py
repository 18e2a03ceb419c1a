"""Folders of several files that are complete or not there, such as an exported model."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from t2i.config import ConfigError
from t2i.runs.files import lock, respect_umask
from t2i.runs.records import sync_tree


@contextmanager
def replacing_folder(path: Path, temporary: Path) -> Generator[Path]:
    """Yields `temporary`, empty, which takes the place of `path` at the end of the block, synced to the disk.

    What a killed process left there is removed; the caller sees to it that no other is at work there. After an error,
    `path` is as it was.
    """
    if temporary.is_dir():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        respect_umask(temporary)
        sync_tree(temporary)
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """Yields where to write what becomes the folder `path`, of which the user has said that there is none yet.

    Raises ConfigError if there is one, or if another process is writing it.
    """
    work = path.with_name(f".{path.name}.tmp")
    work.mkdir(parents=True, exist_ok=True)
    try:
        with lock(work):
            try:
                if path.exists() and (not path.is_dir() or any(path.iterdir())):
                    raise ConfigError(f"{path} exists; name a new folder")
                with replacing_folder(path, work / "new") as new:
                    yield new
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except Timeout as error:
        raise ConfigError(f"{path} is being written by another process; wait for it, or name another") from error
