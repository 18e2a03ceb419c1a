"""Folders of images, with the captions in metadata files or in .txt files next to them."""

import csv
import hashlib
import json
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq

from t2i.config import ConfigError
from t2i.data.cache_files import locked, read_memo, write_memo
from t2i.data.datasets import CachedSettings, loader_of
from t2i.data.folder_files import Files, walk
from t2i.data.images import SUFFIXES, VERSION, Facts, examine_file, unusable
from t2i.data.records import Item
from t2i.data.splits import Captioned

log = logging.getLogger(__name__)
LONGEST = 1_000_000  # bytes of a line of metadata, and of a .txt file
MOST_ROWS = 50_000_000  # of a metadata file
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclass(frozen=True, kw_only=True)
class Folder(CachedSettings):
    """Images in a folder and those below it. Held out is validation/, or else what hashes decide."""

    caption_column: str

    def load(self) -> Captioned:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise ConfigError(f"dataset.path={self.path} is not a folder; for a data set of the Hub, use dataset=hub")
        found = items(root, self.caption_column, self.follow_links)
        return self.captioned([replace(item, for_validation=item.name.startswith("validation/")) for item in found])


folder = loader_of(Folder)


def items(root: Path, caption_column: str, follow_links: bool = False) -> list[Item]:
    """Every image below `root`, and everything that its metadata names; those that can't be used say why.

    follow_links: also read what links lead to outside `root`.
    Hidden files (.NAME) are ignored. A metadata file describes files in its own folder and below. An image IMAGE.jpg
    that is in none of them has the lines of IMAGE.txt as its captions.
    """
    found = walk(root, follow_links)
    files = found.stats
    metadata = sorted(name for name in files if name.rpartition("/")[2] in METADATA)
    for listing in metadata:
        if listing in found.outside:
            raise ConfigError(f"dataset.path: {root / listing} {found.outside[listing]}")
    listed, unusable_rows = _listed(root, metadata, found, caption_column)
    others = [name for name in files if Path(name).suffix.lower() in SUFFIXES and name not in listed]
    no_text = "has no caption in a metadata file" if metadata else "has no caption: there is no .txt file next to it"
    described, undescribed = _described(root, others, found, no_text)
    captions = {name: caption for name, caption in (listed | described).items() if name not in found.outside}
    facts = _facts(root, {name: files[name] for name in captions})
    usable = [Item(name, caption, (root / name).read_bytes, facts[name]) for name, caption in captions.items()]
    outside = {name: problem for name, problem in found.outside.items() if name in listed}
    linked = [_unusable(name, problem) for name, problem in (found.folders | outside).items()]
    return usable + linked + unusable_rows + undescribed


def _unusable(name: str, problem: str) -> Item:
    return Item(name, None, bytes, unusable(problem))


def _listed(root: Path, metadata: list[str], files: Files, caption_column: str) -> tuple[dict[str, object], list[Item]]:
    """The captions in the metadata files, by file; and the rows that can't be used."""
    names = {_composed(name): name for name in files.stats}
    captions: dict[str, object] = {}
    bad = []
    for listing in metadata:
        for row, (file_name, caption) in enumerate(_rows(root / listing, caption_column)):
            name, problem = _below(listing, file_name)
            name = names.get(_composed(name), name)
            if not problem and name not in files.stats:
                problem = "does not exist"
            elif name in captions:
                problem = "is listed twice; give several captions as a list in one row"
            if problem:
                bad.append(_unusable(f"{file_name} ({listing}, row {row})", problem))
            else:
                captions[name] = caption
    return captions, bad


def _composed(name: str) -> str:
    """The name in one Unicode form: file systems and metadata files may compose accents differently."""
    return unicodedata.normalize("NFC", name)


def _below(listing: str, file_name: object) -> tuple[str, str]:
    """The file that a row of a metadata file names, relative to the data folder; and the problem with it."""
    if not isinstance(file_name, str) or not file_name:
        return "", "is not a file name"
    name = os.path.normpath(f"{listing.rpartition('/')[0] or '.'}/{file_name}")
    if os.path.isabs(file_name) or name.startswith(".."):
        return name, "points outside the data folder"
    return name, ""


def _rows(file: Path, caption_column: str) -> Iterator[tuple[object, object]]:
    """File name and caption(s) of each row of a metadata file."""
    try:
        columns, rows = _table(file, ("file_name", caption_column))
    except (OSError, ValueError, TypeError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(f"dataset.path: {file} can't be read ({error}); fix or remove it") from error
    present = ", ".join(map(str, columns)) or "none"
    if "file_name" not in columns:
        raise ConfigError(f"dataset.path: {file} has no column file_name; its columns are {present}")
    if caption_column not in columns:
        raise ConfigError(f"dataset.caption_column={caption_column} is not in {file}; its columns are {present}")
    for row in rows:
        yield row.get("file_name"), row.get(caption_column)


def _table(file: Path, wanted: Sequence[str]) -> tuple[Sequence[str], list[dict]]:
    """All columns of a metadata file, and its rows with the wanted ones."""
    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as table:
            columns, number = table.schema_arrow.names, table.metadata.num_rows
            if number > MOST_ROWS:  # few bytes can stand for any number of equal rows
                raise ValueError(f"it has {number} rows; it may have {MOST_ROWS}")
            return columns, table.read([name for name in wanted if name in columns]).to_pylist()
    with file.open(encoding="utf-8-sig", newline="" if file.suffix == ".csv" else None) as text:
        lines = _bounded(text)
        if file.suffix == ".csv":
            reader = csv.DictReader(lines, strict=True)
            return reader.fieldnames or [], [{name: row.get(name) for name in wanted} for row in reader]
        columns, rows = dict[str, None](), []
        for row in (json.loads(line) for line in lines if line.strip()):
            if not isinstance(row, dict):
                raise ValueError('a line is not an object, such as {"file_name": "1.png", "text": "a heart"}')
            columns |= dict.fromkeys(row)
            rows.append({name: row[name] for name in wanted if name in row})
    return list(columns), rows


def _bounded(text: TextIO) -> Iterator[str]:
    """The lines of a file, which is refused at one that would fill the memory."""
    number = 0
    while line := text.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise ValueError(f"line {number} is longer than {LONGEST} characters")
        yield line


def _described(root: Path, images: list[str], files: Files, no_text: str) -> tuple[dict[str, object], list[Item]]:
    """The captions in .txt files, by image; and the images without one. no_text: the problem if there is no file."""
    stems = Counter(name.rpartition(".")[0] for name in images)
    captions: dict[str, object] = {}
    bad = []
    for name in images:
        stem = name.rpartition(".")[0]
        text = f"{stem}.txt"
        if name in files.outside:
            bad.append(_unusable(name, files.outside[name]))
        elif text in files.outside:
            bad.append(_unusable(name, f"can't be used: {text} {files.outside[text]}"))
        elif text not in files.stats:
            bad.append(_unusable(name, no_text))
        elif (size := files.stats[text].st_size) > LONGEST:
            bad.append(_unusable(name, f"can't be used: {text} has {size} bytes; a caption file may have {LONGEST}"))
        elif stems[stem] > 1:
            bad.append(_unusable(name, f"shares {text} with another image; rename one of them"))
        else:
            captions[name] = _lines(root / text)
    return captions, bad


def _lines(file: Path) -> list[str] | None:
    """The captions in a .txt file, one on each line; None if it is not text."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        return None


def _facts(root: Path, files: dict[str, os.stat_result]) -> dict[str, Facts]:
    """The facts of the files. They are stored, and valid as long as size and modification time are the same."""
    key = hashlib.sha256(f"{VERSION} {root.resolve()}".encode()).hexdigest()[:32]
    index = Path(datasets.config.HF_DATASETS_CACHE) / "t2i" / f"{key}.json"
    with locked(index, "HF_DATASETS_CACHE"):  # of two runs that start at once, one scans
        known = {name: entry for name, entry in (read_memo(index) or {}).items() if _is_entry(entry)}
        state = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()}
        new = [name for name in files if name not in known or known[name]["state"] != state[name]]
        if new:
            log.info("scanning %d new images in %s", len(new), root)
            with ThreadPoolExecutor() as threads:
                scanned = threads.map(lambda name: examine_file(root / name), new)
                entries = zip(new, scanned, strict=True)
                known |= {name: {"state": state[name], **asdict(facts)} for name, facts in entries}
            known = {name: entry for name, entry in known.items() if name in files}
            write_memo(index, known)
    return {name: Facts(**{key: value for key, value in known[name].items() if key != "state"}) for name in files}


def _is_entry(entry: object) -> bool:
    """Whether a stored value has the fields of `Facts`, and the state of the file."""
    if not isinstance(entry, dict) or entry.keys() != {"state", "sha256", "width", "height", "problem"}:
        return False
    sizes, texts = (entry["width"], entry["height"]), (entry["sha256"], entry["problem"])
    return all(type(size) is int for size in sizes) and all(isinstance(text, str) for text in texts)
