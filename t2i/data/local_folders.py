"""Folders on this machine that the library `datasets` reads: what it takes for patterns, splits and unchanged files."""

import glob
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import datasets.config

from t2i.config import ConfigError
from t2i.data.cache_files import locked

log = logging.getLogger(__name__)
INFO, STATE, SPLITS = "dataset_info.json", "state.json", "dataset_dict.json"  # of `save_to_disk`


def files_below(folder: str | Path) -> Iterator[Path]:
    """All files but hidden ones."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def newest_change(folder: str | Path) -> float:
    """When a file in the folder was last changed, as the system counts it: copying and `touch` can't set it back."""
    return max((os.stat(file).st_ctime for file in files_below(folder) if file.exists()), default=0.0)


def have_changed(folder: str | Path, prepared: Path) -> bool:
    """Whether a file has changed since `datasets` read the folder; prepared: its cache.

    `datasets` itself looks at times of modification, which a copied or restored file brings along.
    """
    info = prepared / INFO
    return info.is_file() and newest_change(folder) >= info.stat().st_mtime


def without_pattern(folder: str) -> str:
    """A folder with the same files whose name `datasets` does not take for a pattern: one of links, if necessary."""
    real = os.path.realpath(folder)
    if not glob.has_magic(real):
        return folder
    links = Path(datasets.config.HF_DATASETS_CACHE) / "t2i" / "links" / hashlib.sha256(real.encode()).hexdigest()[:16]
    with locked(links.with_suffix(".links"), "HF_DATASETS_CACHE"):
        wanted = {file.relative_to(real): file for file in files_below(real)}
        for link in [link for link in files_below(links) if link.relative_to(links) not in wanted]:
            link.unlink()
        for name, file in wanted.items():
            (links / name).parent.mkdir(parents=True, exist_ok=True)
            if not (links / name).is_symlink():
                (links / name).symlink_to(file)
    return str(links)


def is_saved(folder: str | Path) -> bool:
    """Whether it was written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return (Path(folder) / STATE).is_file() or (Path(folder) / SPLITS).is_file()


def read_saved(folder: str | Path) -> dict[str, datasets.Dataset]:
    """The splits of such a folder. Raises ConfigError if it names files outside of it."""
    root = Path(folder)
    try:
        names = json.loads((root / SPLITS).read_text())["splits"] if (root / SPLITS).is_file() else ["."]
        for name in names:
            state = json.loads((root / name / STATE).read_text())
            for part in (name, *(file["filename"] for file in state["_data_files"])):
                if part != os.path.basename(part) or part == "..":
                    raise ConfigError(f"dataset.path={folder}: {part} lies outside the data set; save it anew")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"dataset.path={folder} can't be read ({error!r}); save the data set anew") from error
    loaded = datasets.load_from_disk(str(folder))
    return {str(name): rows for name, rows in loaded.items()} if isinstance(loaded, dict) else {"train": loaded}


def facts_file(folder: str | Path, rows: datasets.Dataset, split: str, version: str) -> str:
    """Where the facts of a saved data set are cached: `datasets` would put them into the user's folder."""
    state = (os.path.realpath(folder), split, rows._fingerprint, newest_change(folder), version)
    key = hashlib.sha256(repr(state).encode()).hexdigest()[:32]
    file = Path(datasets.config.HF_DATASETS_CACHE) / "t2i" / f"facts-{key}.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)
    return str(file)


def in_no_split(folder: str, data_files: Mapping[str, Sequence[str]]) -> list[str]:
    """The data files of a folder that `datasets` puts into no split, by relative path."""
    used = {os.path.realpath(file) for files in data_files.values() for file in files}
    kinds = {Path(file).suffix.lower() for file in used} - {".json", ".jsonl", ".csv"}
    rest = [file for file in files_below(folder) if file.suffix.lower() in kinds and os.path.realpath(file) not in used]
    return sorted(file.relative_to(folder).as_posix() for file in rest)


def tell_of_splits(folder: str, data_files: Mapping[str, Sequence[str]], used: Sequence[str]) -> None:
    """Say which files a split consists of, if the folder has others."""
    unused = in_no_split(folder, data_files)
    others = {f"split {name}": files for name, files in data_files.items() if name not in used}
    others |= {"no split": unused} if unused else {}
    if others:
        own = [os.path.relpath(file, folder) for name in used for file in data_files.get(name, ())]
        rest = [f"{len(names)} in {kind} ({_example(names, folder)})" for kind, names in others.items()]
        message = "%s: of its data files, %d are used (%s), and not used are %s; see dataset.split"
        log.warning(message, folder, len(own), _example(own, folder), ", ".join(rest))


def _example(names: Sequence[str], folder: str) -> str:
    shown = [os.path.relpath(name, folder) if os.path.isabs(name) else name for name in names[:2]]
    return ", ".join(shown) + (" ..." if len(names) > 2 else "")
