"""What is in the shards of a set: of each an index, which is kept when the shard is gone."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
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
from t2i.data.images import VERSION, Facts, examine
from t2i.data.records import Item, report
from t2i.data.shards import FORMATS, BadShard, Columns, Found, Rows, Shard, Tar
from t2i.runs.files import atomic_write

log = logging.getLogger(__name__)
FORMAT = "1"  # of an index; part of its key
CHUNK = 64  # images looked at together: what is in memory at once
TABLES = 16  # in memory
INDEX = pa.schema(
    {
        "name": pa.string(), "captions": pa.list_(pa.string()), "sha256": pa.string(), "width": pa.int64(),
        "height": pa.int64(), "where": pa.list_(pa.int64(), 2),
    }
)  # fmt: skip


class Source(Protocol):
    """Where shards come from."""

    def open(self, shard: Shard, soon: Sequence[Shard] = ()) -> BinaryIO:
        """Its file, fetched if need be; `soon`: which others will be needed, and are better not removed for it."""


@dataclass
class Catalogue:
    """What is in some shards of a set: of each an index, made when it is first asked for, and kept.

    An item that can't be used has no place. The others have the order of their images' hashes, which is the same
    in any format.
    """

    source: Source
    shards: list[Shard]
    path: str  # of the set, in messages
    columns: Columns
    folder: Path  # where the indices are kept: they are small, and outlive the shards
    on_error: str  # see t2i.data.records
    soon: Sequence[int] = ()  # which shards are needed now and next: what is fetched is not to push them out
    summaries: dict[int, dict] = field(default_factory=dict)
    tables: dict[int, pa.Table] = field(default_factory=dict)

    def known(self) -> list[int]:
        """The shards whose index is there already."""
        return [shard for shard in range(len(self.shards)) if self._file(shard).is_file()]

    def count(self, shard: int) -> int:
        return self.summary(shard)["items"]

    def summary(self, shard: int) -> dict:
        """{"items": how many can be used, "skipped": the others and why}.

        Raises ConfigError if the shard can't be read, or if an item can't be used and none is to be skipped.
        """
        if shard not in self.summaries:
            file = self._file(shard)
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):  # two processes that come at once look once
                if new := not file.is_file():
                    log.info(
                        "looking at the images of %s: no index of it is in %s", self.shards[shard].name, self.folder
                    )
                    table, skipped = self._survey(shard)
                    pq.write_table(table, file.with_suffix(".tmp"), compression="zstd")
                    file.with_suffix(".tmp").replace(file.with_suffix(".parquet"))
                    atomic_write(file, json.dumps({"items": len(table), "skipped": skipped}))
            summary = json.loads(file.read_text(encoding="utf-8"))
            if new or self.on_error == "stop":
                number = summary["items"] + len(summary["skipped"])
                report(summary["skipped"], number, self.path, self.on_error, str(file))
            self.summaries[shard] = summary
        return self.summaries[shard]

    def item(self, shard: int, place: int) -> tuple[tuple[str, ...], Facts, tuple[int, int]]:
        """Captions, facts of the image, and where it lies in the shard."""
        if shard not in self.tables:
            self.count(shard)
            self.tables = dict(list(self.tables.items())[1 - TABLES :])
            self.tables[shard] = pq.read_table(self._file(shard).with_suffix(".parquet"))
        row = self.tables[shard].slice(place, 1).to_pylist()[0]
        facts = Facts(row["sha256"], row["width"], row["height"], "")
        return tuple(row["captions"]), facts, tuple(row["where"])

    def contents(self, shard: int, places: Sequence[int]) -> list[bytes]:
        """The files of some images of a shard."""
        items = [self.item(shard, place) for place in places]
        with self._opened(shard) as reader:
            found = reader.contents([where for _, _, where in items])
        hashes = [facts.sha256 for _, facts, _ in items]
        if hashes != [hashlib.sha256(content).hexdigest() for content in found]:
            raise ConfigError(f"dataset.path={self.path}: {self.shards[shard].name} has changed while it was in use")
        return found

    def fetch(self, shard: int) -> None:
        """See to it that a shard is here, and its index."""
        self.summary(shard)
        with self._opened(shard):
            pass

    def fingerprint(self) -> str:
        return repr((VERSION, self.columns, [(shard.name, shard.content) for shard in self.shards]))

    def _survey(self, shard: int) -> tuple[pa.Table, list[dict[str, str]]]:
        rows, skipped, name = [], [], self.shards[shard].name
        with self._opened(shard) as reader, ThreadPoolExecutor() as threads:
            found = iter(reader)
            while chunk := list(islice(found, CHUNK)):
                for each, facts in zip(chunk, threads.map(_examined, chunk), strict=True):
                    item = Item(f"{name}: {each.name}", each.caption, bytes, facts)
                    if item.problem:
                        skipped.append({"item": item.name, "reason": item.problem})
                    else:
                        known = {"sha256": facts.sha256, "width": facts.width, "height": facts.height}
                        rows.append({"name": each.name, "captions": item.captions, "where": each.where} | known)
        rows.sort(key=lambda row: (row["sha256"], row["captions"], row["where"]))
        return pa.Table.from_pylist(rows, INDEX), skipped

    @contextmanager
    def _opened(self, shard: int) -> Iterator[Tar | Rows]:
        """A reader of the shard; within, what is wrong with it is a ConfigError that names it."""
        name = self.shards[shard].name
        with self.source.open(self.shards[shard], [self.shards[other] for other in self.soon]) as file:
            try:
                yield FORMATS[PurePosixPath(name).suffix](file, self.columns)
            except BadShard as problem:
                raise ConfigError(f"dataset.path={self.path}: {name} {problem}; mend it, or leave it out") from problem

    def _file(self, shard: int) -> Path:
        """Of the summary; the index lies beside it."""
        key = hashlib.sha256(repr((FORMAT, VERSION, self.shards[shard], self.columns)).encode()).hexdigest()
        return self.folder / f"{key[:32]}.json"


def _examined(found: Found) -> Facts:
    return Facts("", 0, 0, found.problem) if found.problem else examine(found.content)
