"""The files below a folder. What links lead to outside of it is read only with dataset.follow_links=true."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass
class Files:
    """What is below a folder, by relative path. outside, folders, broken: what is not read, with the problem."""

    stats: dict[str, os.stat_result] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)  # links to files outside the folder
    folders: dict[str, str] = field(default_factory=dict)  # links to folders
    broken: dict[str, str] = field(default_factory=dict)  # links to nothing
    special: list[str] = field(default_factory=list)  # pipes and devices


def walk(root: Path, follow_links: bool) -> Files:
    """All files but hidden ones (.NAME). A link is followed if the file it leads to is below `root`, or if told so."""
    files, followed = Files(), []
    for parent, folders, names in os.walk(root, followlinks=follow_links):
        below = Path(parent).relative_to(root)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [name for name in folders if (Path(parent) / name).is_symlink()]:
            if problem := _problem_of_folder(root, Path(parent) / name, follow_links):
                files.folders[(below / name).as_posix()] = problem
                folders.remove(name)
        for name in sorted(names):
            path, relative = Path(parent) / name, (below / name).as_posix()
            if name.startswith("."):
                continue
            if not path.is_file():
                if path.is_symlink() and not path.exists():
                    files.broken[relative] = f"is a link to {os.readlink(path)}, which does not exist"
                else:
                    files.special.append(relative)
                continue
            files.stats[relative] = path.stat()
            if (follow_links or path.is_symlink()) and not is_below(path, [root]):
                followed.append(relative)
    if follow_links:
        warn_of(followed, str(root))
    else:
        files.outside = {name: outside_problem(root / name) for name in followed}
    return files


def _problem_of_folder(root: Path, link: Path, follow_links: bool) -> str:
    """Why a link to a folder is not followed, as the rest of a sentence that begins with its name; empty if it is."""
    if not follow_links:
        if is_below(link, [root]):
            return "is a symbolic link to a folder; copy or mount the folder"
        return outside_problem(link)
    ancestors = [Path(os.path.realpath(folder)) for folder in link.parents if folder.is_relative_to(root)]
    if any(ancestor.is_relative_to(os.path.realpath(link)) for ancestor in ancestors):
        return "is a symbolic link to a folder that contains it; remove the link"
    return ""


def is_below(file: str | Path, folders: Iterable[str | Path]) -> bool:
    """Whether a file lies in one of the folders, all links resolved."""
    real = Path(os.path.realpath(file))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def outside_problem(file: str | Path) -> str:
    """The problem with a file outside the data set, as the rest of a sentence that begins with its name."""
    return f"lies outside the data folder, at {os.path.realpath(file)}; copy it, or set dataset.follow_links=true"


def warn_of(files: list[str], path: str) -> None:
    """Say that files outside the data set are read: whoever wrote the configuration may not own the machine."""
    if files:
        message = "dataset.follow_links=true: %d files of %s lie outside of it and are read, such as %s"
        log.warning(message, len(files), path, files[0])
