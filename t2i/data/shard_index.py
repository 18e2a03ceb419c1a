"""Indices of shards: the captions and facts of the images in each, which are kept when the shard is removed."""

import hashlib
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from t2i.config import ConfigError
from t2i.data.cache_files import locked, publishing, read_memo, warn_of_damage, write_memo
from t2i.data.images import VERSION, Facts, examine, unusable
from t2i.data.records import Item, report
from t2i.data.shards import FORMATS, BadShard, Columns, Rows, Shard, ShardItem, Tar

log = logging.getLogger(__name__)
FORMAT = "1"  # of an index; part of its key
READER = 2  # what could not be used by an earlier reader is looked at again
CHUNK = 64  # images scanned together: their files are in memory at once
TABLES = 16  # in memory
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("sha256", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("where", pa.list_(pa.int64(), 2)),
    ]
)


class Source(Protocol):
    """The place that shards come from."""

    def open(self, shard: Shard, protected: Sequence[Shard] = ()) -> BinaryIO:
        """The shard's file, fetched if necessary. protected: others that are needed soon, and evicted last for it."""
        ...


@dataclass
class ShardIndex:
    """The usable items of some shards. The index of a shard is made when it is first needed, and stored.

    The items of a shard are numbered in the order of their images' hashes, which is the same in every format.
    """

    source: Source
    shards: list[Shard]
    path: str  # of the data set, in messages
    columns: Columns
    folder: Path  # of the stored indices: they are small, and outlive the shards
    on_error: str  # see t2i.data.records
    protected: Sequence[int] = ()  # see `protect`
    summaries: dict[int, dict] = field(default_factory=dict)
    tables: dict[int, pa.Table] = field(default_factory=dict)

    def protect(self, shards: Sequence[int]) -> None:
        """From now on, fetching a shard evicts these last: they are needed now and next."""
        self.protected = shards

    def known(self) -> list[int]:
        """The shards whose index is stored already."""
        return [shard for shard in range(len(self.shards)) if self._file(shard).is_file()]

    def count(self, shard: int) -> int:
        return self.summary(shard)["items"]

    def summary(self, shard: int) -> dict:
        """The number of usable `items`, and the `skipped` ones with the reasons.

        Raises ConfigError if the shard can't be read, or if an item can't be used and on_error=stop.
        """
        if shard not in self.summaries:
            summary, new = self._stored(shard)
            if new or self.on_error == "stop":
                number = summary["items"] + len(summary["skipped"])
                report(summary["skipped"], number, f"dataset.path={self.path}", self.on_error, str(self._file(shard)))
            self.summaries[shard] = summary
        return self.summaries[shard]

    def _stored(self, shard: int, anew: bool = False) -> tuple[dict, bool]:
        """The summary, and whether the index was made now: because there was none, or it is damaged, or `anew`."""
        file, name = self._file(shard), self.shards[shard].name
        with locked(file):  # of two processes that start at once, one scans
            summary = None if anew else read_memo(file)
            if summary is not None and not _is_summary(summary):
                warn_of_damage(file, "it is not the summary of a shard")
            elif summary is not None and self._holds(shard, summary):
                return summary, False
            log.info("indexing the images of %s: there is no index of it in %s yet", name, self.folder)
            table, skipped = self._scan(shard)
            temporary = file.with_suffix(".tmp")
            with publishing(temporary, file.with_suffix(".parquet")):
                pq.write_table(table, temporary, compression="zstd")
                content = temporary.read_bytes()
            summary = {"items": len(table), "skipped": skipped, "sha256": hashlib.sha256(content).hexdigest()}
            write_memo(file, summary | {"changed": self.shards[shard].changed, "reader": READER})
            return summary, True

    def _holds(self, shard: int, summary: dict) -> bool:
        """Whether a stored summary is that of the shard as it is now, and as it is read now."""
        before, now = summary.get("changed"), self.shards[shard].changed  # earlier versions did not store it
        return before in (None, "", now) and not (summary["skipped"] and summary.get("reader") != READER)

    def item(self, shard: int, number: int) -> tuple[tuple[str, ...], Facts, tuple[int, int]]:
        """The captions of an item, the facts of its image, and where this is in the shard (see ShardItem)."""
        if shard not in self.tables:
            file = self._file(shard).with_suffix(".parquet")
            table = _read_table(file, self.summary(shard))
            if table is None:
                self.summaries[shard], _ = self._stored(shard, anew=True)
                table = _read_table(file, self.summary(shard))
            if table is None:
                raise ConfigError(f"cache_dir: {file} could not be read back; use a cache_dir on another disk")
            self.tables = dict(list(self.tables.items())[1 - TABLES :])
            self.tables[shard] = table
        row = self.tables[shard].slice(number, 1).to_pylist()[0]
        facts = Facts(row["sha256"], row["width"], row["height"], "")
        return tuple(row["captions"]), facts, tuple(row["where"])

    def contents(self, shard: int, numbers: Sequence[int]) -> list[bytes]:
        """The image files of some items of a shard."""
        items = [self.item(shard, number) for number in numbers]
        with self._opened(shard) as reader:
            files = reader.contents([where for _, _, where in items])
        hashes = [facts.sha256 for _, facts, _ in items]
        if hashes != [hashlib.sha256(content).hexdigest() for content in files]:
            raise ConfigError(f"dataset.path={self.path}: {self.shards[shard].name} has changed while it was in use")
        return files

    def fetch(self, shard: int) -> None:
        """Fetch a shard and make its index, if they are not here yet."""
        self.summary(shard)
        with self._opened(shard):
            pass

    def fingerprint(self) -> str:
        return repr((VERSION, self.columns, [(shard.name, shard.content) for shard in self.shards]))

    def _scan(self, shard: int) -> tuple[pa.Table, list[dict[str, str]]]:
        """The index of a shard, and its items that can't be used."""
        rows, skipped, name = [], [], self.shards[shard].name
        with self._opened(shard) as reader:
            for entry, facts in _examined(reader):
                item = Item(f"{name}: {entry.name}", entry.caption, bytes, facts)
                if item.problem:
                    skipped.append({"item": item.name, "reason": item.problem})
                else:
                    row = {"name": entry.name, "captions": item.captions, "where": entry.where}
                    rows.append(row | {"sha256": facts.sha256, "width": facts.width, "height": facts.height})
        rows.sort(key=lambda row: (row["sha256"], row["captions"], row["where"]))
        return pa.Table.from_pylist(rows, SCHEMA), skipped

    @contextmanager
    def _opened(self, shard: int) -> Generator[Tar | Rows]:
        """A reader of the shard; what it finds wrong becomes a ConfigError that names the shard."""
        name = self.shards[shard].name
        with self.source.open(self.shards[shard], [self.shards[other] for other in self.protected]) as file:
            try:
                yield FORMATS[PurePosixPath(name).suffix](file, self.columns)
            except BadShard as problem:
                raise ConfigError(f"dataset.path={self.path}: {name} {problem}; fix or remove it") from problem

    def _file(self, shard: int) -> Path:
        """The file of a shard's summary; its table has the same name, but for the suffix."""
        key = hashlib.sha256(repr((FORMAT, VERSION, self.shards[shard], self.columns)).encode()).hexdigest()
        return self.folder / f"{key[:32]}.json"


def _is_summary(summary: dict) -> bool:
    items, skipped = summary.get("items"), summary.get("skipped")
    if type(items) is not int or items < 0 or not isinstance(skipped, list):
        return False
    return all(isinstance(item, dict) and {"item", "reason"} <= item.keys() for item in skipped)


def _read_table(file: Path, summary: dict) -> pa.Table | None:
    """The table of an index; None if it is damaged or missing, of which a warning tells."""
    if file.is_dir():
        raise ConfigError(f"{file} is a folder instead of a file of the cache; delete it")
    try:
        content = file.read_bytes()
        if summary.get("sha256", checksum := hashlib.sha256(content).hexdigest()) != checksum:
            raise ValueError("its checksum differs")  # indices that were written before have none
        table = pq.read_table(pa.BufferReader(content))
        if not table.schema.equals(SCHEMA) or len(table) != summary["items"]:
            raise ValueError("it is not the table of the shard")
        return table
    except (OSError, ValueError, pa.ArrowException) as error:
        warn_of_damage(file, str(error).partition("\n")[0])
        return None


def _examined(items: Iterable[ShardItem]) -> Iterator[tuple[ShardItem, Facts]]:
    """The items with the facts of their images, which several threads determine."""
    remaining = iter(items)
    with ThreadPoolExecutor() as threads:
        while chunk := list(islice(remaining, CHUNK)):
            yield from zip(chunk, threads.map(_facts, chunk), strict=True)


def _facts(item: ShardItem) -> Facts:
    return unusable(item.problem) if item.problem else examine(item.content)
