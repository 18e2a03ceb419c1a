"""What may stand where a file is expected, and would be waited for, or read, for ever."""

import os
from pathlib import Path


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("w") as file:
        file.truncate(10**11)  # a sparse file, which takes no space
