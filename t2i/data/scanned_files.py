"""The facts of image files, which are stored: a file is decoded once, and again when it may hold another image.

What is promised: a file is taken for unchanged only if its size, its time of modification, its inode and the time at
which the system last changed it are as they were. Copying, restoring from an archive and `touch` set the first two, but
never the last. In any other case its content is hashed.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets.config
from rich.console import Console
from rich.progress import track

from t2i.data.cache_files import locked, read_memo, write_memo
from t2i.data.images import LARGEST, VERSION, Facts, examine_file

log = logging.getLogger(__name__)
JUST_NOW = 100_000_000  # ns; a file that was changed so shortly before it is read may change again at the same time
MANY = 200  # images that take a while
FACTS = ("sha256", "width", "height", "problem")


def state_of(stat: os.stat_result, now: int) -> list[int]:
    """What a file's content is known by, at a time in ns; its last two numbers are -1 where they say nothing yet."""
    settled = stat.st_ctime_ns < now - JUST_NOW
    return [stat.st_size, stat.st_mtime_ns, *((stat.st_ctime_ns, stat.st_ino) if settled else (-1, -1))]


def scan(root: Path, files: dict[str, os.stat_result]) -> dict[str, Facts]:
    """The facts of some files below `root`, by their relative paths."""
    key = hashlib.sha256(f"{VERSION} {root.resolve()}".encode()).hexdigest()[:32]
    index = Path(datasets.config.HF_DATASETS_CACHE) / "t2i" / f"{key}.json"
    with locked(index, "HF_DATASETS_CACHE"):  # of two runs that start at once, one scans
        known = {name: entry for name, entry in (read_memo(index) or {}).items() if _is_entry(entry)}
        now = time.time_ns()
        state = {name: state_of(stat, now) for name, stat in files.items()}
        changed = [name for name in files if name not in known or not _is_as_it_was(known[name], state[name])]
        before = dict(known)
        with ThreadPoolExecutor() as threads:
            hashed = threads.map(lambda name: _has_hash(root / name, before.get(name)), changed)
            same = dict(zip(changed, hashed, strict=True))
            new = [name for name in changed if not same[name]]
            if unknown := [name for name in new if name not in known or not known[name]["problem"]]:
                log.info("scanning %d new images in %s", len(unknown), root)
            examined = threads.map(lambda name: examine_file(root / name), new)
            scanned = dict(zip(new, _shown(examined, len(new)), strict=True))
        for name in changed:
            facts = asdict(scanned[name]) if name in scanned else _facts_in(known[name])
            known[name] = {"state": state[name], **facts}
        if changed or known.keys() != files.keys():
            known = {name: entry for name, entry in known.items() if name in files}
            write_memo(index, known)
    return {name: Facts(**_facts_in(known[name])) for name in files}


def _shown(facts: Iterable[Facts], total: int) -> Iterable[Facts]:
    """The same, with a bar in the terminal if there are many."""
    console = Console(stderr=True)
    hidden = total < MANY or not console.is_terminal
    return track(facts, "scanning images", total, console=console, transient=True, disable=hidden)


def newest_change(files: Iterable[os.stat_result]) -> float:
    """When one of the files was last changed, in seconds as time.time() counts them; 0 if there are none."""
    return max((stat.st_ctime for stat in files), default=0.0)


def _is_as_it_was(entry: dict[str, Any], state: list[int]) -> bool:
    """Whether a stored entry holds. A file that could not be used is read again: now there may be what it needs."""
    return entry["state"] == state and -1 not in state and not entry["problem"]


def _has_hash(file: Path, entry: dict[str, Any] | None) -> bool:
    """Whether the file's content is the one whose facts are stored."""
    if entry is None or entry["problem"] or file.stat().st_size > LARGEST:
        return False
    return hashlib.sha256(file.read_bytes()).hexdigest() == entry["sha256"]


def _facts_in(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in FACTS}


def _is_entry(entry: object) -> bool:
    """Whether a stored value has the fields of `Facts`, and the state of the file."""
    if not isinstance(entry, dict) or entry.keys() != {"state", *FACTS}:
        return False
    sizes, texts = (entry["width"], entry["height"]), (entry["sha256"], entry["problem"])
    return all(type(size) is int for size in sizes) and all(isinstance(text, str) for text in texts)
