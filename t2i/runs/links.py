"""Run folders may be a stranger's: what t2i writes into one stays in it, whatever its links say.

Reading through links is fine: users link checkpoints and configurations of other runs into a folder.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2i.config import ConfigError
from t2i.runs.text import printable

REMEDY = "remove it, or use another folder"


def refuse_links_out(root: Path, *places: Path) -> None:
    """Refuse to write at or below `places` where a link leads out of `root`, or a pipe or device would block.

    The logs of W&B's runs are left out, which W&B itself links and never writes to again.
    """
    real = os.path.realpath(root)
    for path in _everything(places):
        target = os.path.realpath(path) if path.is_symlink() or path in places else real
        if os.path.commonpath([real, target]) != real and not _is_log_of_wandb(path, root):
            raise ConfigError(printable(f"{path} leads to {target}, outside of {root}; {REMEDY}"))
        _refuse_special(path)


def refuse_links(*places: Path) -> None:
    """Refuse any link at or below `places`, and what is neither a file nor a folder."""
    for path in _everything(places):
        if path.is_symlink():
            raise ConfigError(printable(f"{path} is a link, which is not followed ({os.readlink(path)}); {REMEDY}"))
        _refuse_special(path)


def _refuse_special(path: Path) -> None:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(printable(f"{path} is neither a file nor a folder; {REMEDY}"))


def _everything(places: tuple[Path, ...]) -> Iterator[Path]:
    """The places that exist, dangling links included, and everything below them; no link below is followed."""
    for place in places:
        if os.path.lexists(place):
            yield place
        for parent, folders, files in os.walk(place):
            yield from (Path(parent) / name for name in (*folders, *files))


def _is_log_of_wandb(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    return "wandb" in parts[:-1] and path.parent.name == "logs" and path.suffix == ".log"


def is_path(value: Any) -> bool:
    """Whether the value of a JSON file can name a file: the system takes no null character and no lone surrogate."""
    return isinstance(value, str) and not re.search("[\0\ud800-\udfff]", value)


def read_regular(file: Path, largest: int, errors: str = "strict") -> str:
    """The text of a file. Raises ValueError for a pipe or device, which may never end, and beyond `largest` bytes."""
    found = file.stat()
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):  # reading a folder raises OSError
        raise ValueError("it is not a file")
    if found.st_size > largest:
        raise ValueError(f"it has {found.st_size} bytes")
    return file.read_text(encoding="utf-8", errors=errors)


def open_in_place(path: str, flags: int) -> int:
    """An opener of a file that is neither a link, which would be followed, nor a pipe, which would block."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
