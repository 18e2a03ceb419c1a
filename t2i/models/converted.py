"""Pipelines that were made from other files once, in the cache."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4


def converted(kind: str, key: str, write: Callable[[Path], None]) -> Path:
    """The folder of a pipeline that `write` writes, unless it was written before.

    kind: the cache's folder for such. key: of the content that it is made from.
    """
    folder = Path(os.environ.get("T2I_CACHE", "~/.cache/t2i")).expanduser() / kind / key
    if (folder / "model_index.json").is_file():
        return folder
    partial = folder.with_name(f"{key}.{uuid4().hex[:8]}")
    try:
        write(partial)
        partial.rename(folder)
    except OSError:
        if not (folder / "model_index.json").is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
