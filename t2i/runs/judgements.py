"""Votes of people on pairs of images, in judgements.jsonl: a line for each, appended and never changed.

Several servers may write to one file. A vote that was taken back has a line of its own that says so. A line that a
crash has torn is left out.
"""

import errno
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from t2i.config import ConfigError
from t2i.runs.files import Types
from t2i.runs.full_disk import naming
from t2i.runs.links import is_path, open_in_place, read_regular, refuse_links_out
from t2i.runs.records import is_count, sync

NAME, LOCK = "judgements.jsonl", ".judgements.lock"
LARGEST = 500_000_000  # bytes: a million votes
CHOICES = ("left", "right", "equal")


@dataclass(frozen=True)
class Shown:
    """An image of a pair."""

    run: str  # its folder, relative to that of the file
    step: int
    sha256: str  # of the image's file, which may have been drawn again since


@dataclass(frozen=True)
class Vote:
    """A judge's choice between two images of the same prompt and seed."""

    id: str  # of the pair
    judge: str
    time: str
    battery: str  # its hash
    prompt: int  # number of the prompt in the battery
    text: str  # the prompt
    seed: int
    left: Shown
    right: Shown
    choice: str  # left, right or equal
    repeats: str = ""  # the id of the pair that was shown before with its sides swapped


VOTE: Types = {**dict.fromkeys(("id", "judge", "time", "battery", "text", "choice", "repeats"), str)}
VOTE = {**VOTE, "prompt": int, "seed": int, "left": dict, "right": dict}
SHOWN: Types = {"run": str, "step": int, "sha256": str}
TAKEN_BACK: Types = {"id": str, "judge": str, "time": str, "taken_back": bool}


class Judgements:
    """The file of votes in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / NAME
        self.known: tuple[object, dict[tuple[str, str], Vote], int] = (None, {}, 0)

    def read(self) -> tuple[dict[tuple[str, str], Vote], int]:
        """(judge, id) -> the vote that counts, in the order of the file; and the number of lines that are damaged."""
        found = self.file.stat() if self.file.is_file() else None
        version = (found.st_ino, found.st_size, found.st_mtime_ns) if found else None
        if version != self.known[0] or version is None:
            self.known = (version, *_parse(self._text() if version else ""))
        return self.known[1], self.known[2]

    def add(self, vote: Vote) -> None:
        """Append a vote, unless the judge has already judged the pair."""
        with self._locked():
            if (vote.judge, vote.id) not in self.read()[0]:
                self._append(asdict(vote))

    def take_back(self, judge: str, identity: str) -> None:
        """Let the vote of a judge on the pair of this id no longer count."""
        with self._locked():
            if (judge, identity) in self.read()[0]:
                self._append({"id": identity, "judge": judge, "time": now(), "taken_back": True})

    def _text(self) -> str:
        try:
            return read_regular(self.file, LARGEST, errors="replace")
        except ValueError as error:
            raise ConfigError(f"{self.file} can't be read ({error}); move it away") from error

    @contextmanager
    def _locked(self) -> Generator[None]:
        refuse_links_out(self.folder, self.file, self.folder / LOCK)
        try:
            with FileLock(self.folder / LOCK, timeout=20):
                yield
        except Timeout as error:
            raise ConfigError(f"{self.folder / LOCK} is held by another process; end it, and vote again") from error

    def _append(self, line: Mapping[str, Any]) -> None:
        is_new = not self.file.exists()
        with naming(self.file), open(self.file, "a+b", opener=open_in_place, buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            torn = size and file.read(1) != b"\n"
            text = ("\n" if torn else "") + json.dumps(line, ensure_ascii=False) + "\n"
            try:
                written = file.write(content := text.encode(errors="backslashreplace"))
                if written != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
        if is_new:
            sync(self.folder)


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _parse(text: str) -> tuple[dict[tuple[str, str], Vote], int]:
    votes: dict[tuple[str, str], Vote] = {}
    damaged = 0
    for line in filter(None, text.split("\n")):
        content = _object(line)
        if _has(content, TAKEN_BACK):
            votes.pop((content["judge"], content["id"]), None)
        elif (vote := _vote(content)) is not None:
            votes.setdefault((vote.judge, vote.id), vote)
        else:
            damaged += 1
    return votes, damaged


def _object(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _vote(content: Any) -> Vote | None:
    if not _has(content, VOTE) or not all(_has(content[side], SHOWN) for side in ("left", "right")):
        return None
    if content["choice"] not in CHOICES or not is_count(content["prompt"]) or not 0 <= content["seed"] < 2**64:
        return None
    if not all(is_path(content[side]["run"]) and is_count(content[side]["step"]) for side in ("left", "right")):
        return None
    fields: dict[str, Any] = {key: content[key] for key in VOTE}
    fields |= {side: Shown(**{key: content[side][key] for key in SHOWN}) for side in ("left", "right")}
    return Vote(**fields)


def _has(content: Any, types: Types) -> bool:
    """Whether a JSON value is an object with all of these fields, each of its type."""
    return isinstance(content, dict) and all(type(content.get(key)) is expected for key, expected in types.items())
