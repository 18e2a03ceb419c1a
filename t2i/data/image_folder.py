"""Images in a folder, with their captions in metadata files or in .txt files beside them."""

import csv
import hashlib
import json
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from t2i.config import ConfigError
from t2i.data.images import VERSION, Facts, examine
from t2i.data.records import Item
from t2i.runs.files import atomic_write

log = logging.getLogger(__name__)
IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def items(folder: Path, caption_column: str) -> list[Item]:
    """Every image below `folder`, and everything that its metadata names; those with a problem say which.

    What begins with a dot is no part of the data. A metadata file speaks of the files in its own folder and below;
    where there is none, the lines of IMAGE.txt are the captions of IMAGE.jpg.
    """
    files, links = _walk(folder)
    by_name = {_key(name): name for name in files}  # file systems and metadata may compose letters differently
    captions, bad = {}, [_unusable(name, "is a link to a folder; copy or mount it") for name in links]
    listings = sorted(name for name in files if name.rpartition("/")[2] in METADATA)
    for metadata in listings:
        for place, given, caption in _rows(folder, metadata, caption_column):
            name, problem = _below(metadata, given)
            name = by_name.get(_key(name), name)
            if not problem and name not in files:
                problem = "does not exist"
            elif name in captions:
                problem = "is listed before; several captions of an image are a list in one row"
            if problem:
                bad.append(_unusable(f"{given} ({metadata}, {place})", problem))
            else:
                captions[name] = caption
    beside = [name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES and name not in captions]
    stems = Counter(name.rpartition(".")[0] for name in beside)
    for name in beside:
        text = f"{name.rpartition('.')[0]}.txt"
        if text not in files:
            problem = "has no caption in a metadata file" if listings else "has no caption: no .txt file beside it"
            bad.append(_unusable(name, problem))
        elif stems[name.rpartition(".")[0]] > 1:
            bad.append(_unusable(name, f"shares {text} with another image; name them differently"))
        else:
            captions[name] = _lines(folder / text)
    facts = _facts(folder, {name: files[name] for name in captions})
    good = [Item(name, caption, (folder / name).read_bytes, facts[name]) for name, caption in captions.items()]
    return good + bad


def _unusable(name: str, problem: str) -> Item:
    return Item(name, None, bytes, Facts("", 0, 0, problem))


def _walk(folder: Path) -> tuple[dict[str, os.stat_result], list[str]]:
    """The files below a folder by their relative path; and the links to folders, which are not entered."""
    files, links = {}, []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(parent).relative_to(folder)
        links += [(below / name).as_posix() for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted(names):
            path = Path(parent) / name
            if not name.startswith(".") and path.is_file():
                files[(below / name).as_posix()] = path.stat()
    return files, links


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _below(metadata: str, given: object) -> tuple[str, str]:
    """The file that a metadata file means, relative to the data folder; and what is wrong with it."""
    if not isinstance(given, str) or not given:
        return "", "is no file name"
    name = os.path.normpath(f"{metadata.rpartition('/')[0] or '.'}/{given}")
    if os.path.isabs(given) or name.startswith(".."):
        return name, "leads out of the data folder"
    return name, ""


def _rows(folder: Path, metadata: str, caption_column: str) -> Iterator[tuple[str, object, object]]:
    """Where it stands, file name and caption(s) of each row of a metadata file."""
    file = folder / metadata
    try:
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            columns, rows = table.column_names, table.to_pylist()
        elif file.suffix == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines, strict=True)
                rows = list(reader)
                columns = reader.fieldnames or []
        else:
            with file.open(encoding="utf-8-sig") as lines:
                rows = [json.loads(line) for line in lines if line.strip()]
            columns = list(dict.fromkeys(column for row in rows for column in row))
    except (OSError, ValueError, TypeError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(f"dataset.path: {file} can't be read ({error}); mend it, or take it away") from error
    there = ", ".join(map(str, columns)) or "none"
    if "file_name" not in columns:
        raise ConfigError(f"dataset.path: {file} has no column file_name; its columns are {there}")
    if caption_column not in columns:
        raise ConfigError(f"dataset.caption_column={caption_column} is not in {file}; its columns are {there}")
    for number, row in enumerate(rows):
        yield f"row {number}", row.get("file_name"), row.get(caption_column)


def _lines(file: Path) -> list[str] | None:
    """The captions in a .txt file, one to a line; None if it is no text."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        return None


def _facts(folder: Path, files: dict[str, os.stat_result]) -> dict[str, Facts]:
    """The facts of the files; looked up for those that have the size and time of change that they had before."""
    place = hashlib.sha256(f"{VERSION} {folder.resolve()}".encode()).hexdigest()[:32]
    index = Path(datasets.config.HF_DATASETS_CACHE) / "t2i" / f"{place}.json"
    index.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(index.with_suffix(".lock")):  # two runs that start at once look once
        known = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
        state = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()}
        new = [name for name in files if name not in known or known[name]["state"] != state[name]]
        if new:
            log.info("looking at %d new images in %s", len(new), folder)
            with ThreadPoolExecutor() as threads:
                found = threads.map(lambda name: examine((folder / name).read_bytes()), new)
                known |= {name: {"state": state[name], **asdict(facts)} for name, facts in zip(new, found, strict=True)}
            known = {name: entry for name, entry in known.items() if name in files}
            atomic_write(index, json.dumps(known))
    return {name: Facts(**{key: value for key, value in known[name].items() if key != "state"}) for name in files}
