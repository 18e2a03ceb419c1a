"""Pipelines that were made from other files once, in the cache."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from t2i.runs.full_disk import naming
from t2i.runs.records import sync_tree

PIECE = 2**20  # bytes of a file that are read at its beginning, middle and end


def users_cache() -> Path:
    """The cache of whoever runs t2i. No configuration chooses it, as `cache_dir`: what is in it may be executed."""
    return Path(os.environ.get("T2I_CACHE", "~/.cache/t2i")).expanduser()


def converted(kind: str, key: str, write: Callable[[Path], None], holds: str = "model_index.json") -> Path:
    """The folder of a pipeline, or of a part of one, that `write` writes, unless it was written before.

    kind: the cache's folder for such. key: of the content that it is made from. holds: a file of a complete folder.
    """
    folder = users_cache() / kind / key
    if (folder / holds).is_file():
        return folder
    partial = folder.with_name(f"{key}.{uuid4().hex[:8]}")
    try:
        with naming(folder):
            write(partial)
            sync_tree(partial)
        partial.rename(folder)
    except OSError:
        if not (folder / holds).is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def piece_of(file: Path) -> bytes:
    """What tells a large file from others without reading all of it: its size and three pieces."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        pieces = []
        for start in (0, size // 2, max(0, size - PIECE)):
            opened.seek(start)
            pieces.append(opened.read(PIECE))
    return str(size).encode() + b"".join(pieces)
