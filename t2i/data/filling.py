"""Fills the cache: encodes what is missing, stores it as it goes, and says how much there is to do and is done."""

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from t2i.config import ConfigError
from t2i.data.cache_files import CACHE_DIR, unwritable
from t2i.data.pack_folder import PackFolder
from t2i.data.packs import Packed, Tensors, packed

log = logging.getLogger(__name__)
PACK_BYTES, PACK_SECONDS = 64_000_000, 30.0  # entries are stored when they are so large, or when so much time is over
SAY_EVERY = 30.0  # seconds between lines in the log, where there is no terminal

Encode = Callable[[list[int]], Sequence[Tensors]]  # the entries of some rows


def fill(folder: PackFolder, keys: Sequence[bytes], rows: Sequence[int], encode: Encode, batch: int, what: str) -> None:
    """Encode some rows and store them under their keys, one for every row. What is stored stays if the filling ends.

    batch: rows that are encoded at once. what: they are called so, in the plural. Raises ConfigError if the disk is
    full or can't be written to: after the first batch if all of them will not fit.
    """
    if not os.access(folder.folder, os.W_OK):
        raise unwritable(folder.folder, PermissionError(errno.EACCES, "Permission denied"), CACHE_DIR)
    with _Shown(len(rows), what) as shown, _Open(folder) as pack:
        for start in range(0, len(rows), batch):
            part = list(rows[start : start + batch])
            entries = [{name: packed(tensor) for name, tensor in tensors.items()} for tensors in encode(part)]
            if not start:
                _check_space(folder, sum(map(_nbytes, entries)) / len(part) * len(rows), len(rows), what)
            for row, entry in zip(part, entries, strict=True):
                pack.add(keys[row], entry)
            shown.advance(len(part))


def _nbytes(entry: dict[str, Packed]) -> int:
    return sum(tensor.values.nbytes for tensor in entry.values())


def _check_space(folder: PackFolder, needed: float, number: int, what: str) -> None:
    free = shutil.disk_usage(folder.folder).free
    log.info("%s %s need about %s; %s are free", f"{number:,}", what, readable(needed), readable(free))
    if needed > free:
        raise ConfigError(
            f"cache_dir: {number} encoded {what} need {readable(needed)} in {folder.folder}, where only "
            f"{readable(free)} are free; use a cache_dir on a larger disk, or a smaller dataset.resolution"
        )


class _Open:
    """Entries that are not stored yet; they are at the end, whatever ends it."""

    def __init__(self, folder: PackFolder):
        self.folder, self.entries, self.nbytes = folder, dict[bytes, dict[str, Packed]](), 0
        self.begun = time.monotonic()

    def add(self, key: bytes, entry: dict[str, Packed]) -> None:
        self.entries[key] = entry
        self.nbytes += _nbytes(entry)
        if self.nbytes >= PACK_BYTES or time.monotonic() >= self.begun + PACK_SECONDS:
            self.store()

    def store(self) -> None:
        entries, self.entries, self.nbytes = self.entries, {}, 0
        if entries:
            self.folder.add(entries)
        self.begun = time.monotonic()

    def __enter__(self) -> "_Open":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.store()


class _Shown:
    """The progress: a bar in the terminal, or lines in the log."""

    def __init__(self, total: int, what: str):
        self.total, self.what, self.done, self.said = total, what, 0, time.monotonic()
        console = Console(stderr=True)
        self.live = console.is_terminal
        columns = (TextColumn("encoding {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        left = (TextColumn("left"), TimeRemainingColumn())
        self.progress = Progress(*columns, *left, console=console, disable=not self.live)
        self.task = self.progress.add_task(what, total=total)

    def __enter__(self) -> "_Shown":
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def advance(self, number: int) -> None:
        self.done += number
        self.progress.advance(self.task, number)
        if not self.live and time.monotonic() >= self.said + SAY_EVERY:
            self.said = time.monotonic()
            log.info("encoded %s of %s %s", f"{self.done:,}", f"{self.total:,}", self.what)


def readable(size: float) -> str:
    """A size in bytes with a decimal unit: 1.2 MB is 1,200,000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"
