"""Indices of shards: the captions and facts of the images in each, which are kept when the shard is removed."""

import hashlib
import json
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
from filelock import FileLock

from t2i.config import ConfigError
from t2i.data.images import VERSION, Facts, examine, unusable
from t2i.data.records import Item, report
from t2i.data.shards import FORMATS, BadShard, Columns, Rows, Shard, ShardItem, Tar
from t2i.runs.files import atomic_write

log = logging.getLogger(__name__)
FORMAT = "1"  # of an index; part of its key
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
            file = self._file(shard)
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):  # of two processes that start at once, one scans
                new = not file.is_file()
                if new:
                    name = self.shards[shard].name
                    log.info("indexing the images of %s: there is no index of it in %s yet", name, self.folder)
                    table, skipped = self._scan(shard)
                    pq.write_table(table, file.with_suffix(".tmp"), compression="zstd")
                    file.with_suffix(".tmp").replace(file.with_suffix(".parquet"))
                    atomic_write(file, json.dumps({"items": len(table), "skipped": skipped}))
            summary = json.loads(file.read_text(encoding="utf-8"))
            if new or self.on_error == "stop":
                number = summary["items"] + len(summary["skipped"])
                report(summary["skipped"], number, self.path, self.on_error, str(file))
            self.summaries[shard] = summary
        return self.summaries[shard]

    def item(self, shard: int, number: int) -> tuple[tuple[str, ...], Facts, tuple[int, int]]:
        """The captions of an item, the facts of its image, and where this is in the shard (see ShardItem)."""
        if shard not in self.tables:
            self.count(shard)
            self.tables = dict(list(self.tables.items())[1 - TABLES :])
            self.tables[shard] = pq.read_table(self._file(shard).with_suffix(".parquet"))
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


def _examined(items: Iterable[ShardItem]) -> Iterator[tuple[ShardItem, Facts]]:
    """The items with the facts of their images, which several threads determine."""
    remaining = iter(items)
    with ThreadPoolExecutor() as threads:
        while chunk := list(islice(remaining, CHUNK)):
            yield from zip(chunk, threads.map(_facts, chunk), strict=True)


def _facts(item: ShardItem) -> Facts:
    return unusable(item.problem) if item.problem else examine(item.content)
