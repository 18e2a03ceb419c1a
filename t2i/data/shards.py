"""Shards, many images in one file: tar files in the format of WebDataset, and Parquet files as on the Hub."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from t2i.data.image_values import content_of
from t2i.data.images import SUFFIXES, BadImage


@dataclass(frozen=True)
class Shard:
    """A file of a data set, which need not be on this machine. Its repr is part of the key of its index."""

    name: str
    content: str  # changes with the content: its size, or a hash
    state: str  # changes with the content, but also when the file is copied
    changed: str = field(default="", repr=False, compare=False)  # and when its times were set back; "" if unknown


@dataclass(frozen=True)
class Columns:
    """Where image and caption are. Its repr is part of the key of an index.

    image: a column of Parquet files. caption: a column of Parquet files; in tar files `txt`, or a field of KEY.json.
    """

    image: str
    caption: str


class BadShard(ValueError):
    """What is wrong with a shard, as the rest of a sentence that begins with its name."""


@dataclass(frozen=True)
class ShardItem:
    """An item as it is in a shard, checked no further."""

    name: str
    caption: Any
    where: tuple[int, int]  # offset and size in a tar file; row group and row in a Parquet file
    content: bytes
    problem: str = ""  # why there is no image or no caption


class Tar:
    """A tar file. Files with the same name but for the suffix are an item: KEY.jpg (.png ...), KEY.txt, KEY.json."""

    def __init__(self, file: BinaryIO, columns: Columns):
        self.file, self.columns = file, columns

    def read(self, where: tuple[int, int]) -> bytes:
        offset, size = where
        self.file.seek(offset)
        return self.file.read(size)

    def contents(self, addresses: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.read(where) for where in addresses]

    def __iter__(self) -> Iterator[ShardItem]:
        for key, members in self._members().items():
            images = [where for suffix, where in members if f".{suffix}" in SUFFIXES]
            caption, problem = self._caption(key, dict(members))
            if len(images) != 1:
                names = ", ".join(f"{key}.{suffix}" for suffix, _ in members)
                problem = f"has {'several images' if images else 'no image'} ({names})"
            where = (0, 0) if problem else images[0]
            yield ShardItem(key, caption, where, b"" if problem else self.read(where), problem)

    def _members(self) -> "Members":
        """The files of each key: suffix, and offset and size.

        Raises BadShard if the end-of-archive marker is missing: Python reads a truncated file without an error.
        """
        members: Members = {}
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as tar:
                for member in tar:
                    if member.issparse():  # whose size says nothing about how much of it is in the file
                        raise BadShard(f"contains the sparse file {member.name}; pack the files as they are")
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    if member.isfile() and stem:
                        where = member.offset_data, member.size
                        members.setdefault(folder + slash + stem, []).append((suffix, where))
                end = tar.offset
        except BadShard:
            raise
        except (tarfile.TarError, OSError, ValueError) as error:  # ValueError: numbers in headers that are none
            raise BadShard(f"is not a complete tar file ({error})") from error
        if self.read((end, tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
            raise BadShard(f"is truncated or damaged after {end} bytes: the end-of-archive marker is missing")
        return _with_dotted(members)

    def _caption(self, key: str, members: dict[str, tuple[int, int]]) -> tuple[Any, str]:
        """The caption of an item, and the problem if there is none."""
        wanted = "txt" if self.columns.caption == "txt" else "json"
        if wanted not in members:
            return None, f"has no caption: there is no {key}.{wanted} next to it (see dataset.caption_column)"
        try:
            text = self.read(members[wanted]).decode("utf-8-sig")
            return (text.strip() if wanted == "txt" else json.loads(text)[self.columns.caption]), ""
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"it has no field {error}" if isinstance(error, KeyError) else error
            return None, f"has no caption: {key}.{wanted} can't be used ({reason})"


Members = dict[str, list[tuple[str, tuple[int, int]]]]


def _with_dotted(members: Members) -> Members:
    """The files by key, with lower-case suffixes. Where none is an image, names may have dots, as 0.05.png has."""
    found: Members = {}
    for key, files in members.items():
        is_dotted = not any(f".{suffix.lower()}" in SUFFIXES for suffix, _ in files)
        for suffix, where in files:
            more, dot, last = suffix.rpartition(".") if is_dotted else ("", "", suffix)
            found.setdefault(f"{key}.{more}" if dot else key, []).append((last.lower(), where))
    return found


class Rows:
    """A Parquet file with a column of images, each {bytes, path} or only bytes, and a column of captions."""

    def __init__(self, file: BinaryIO, columns: Columns):
        self.columns = columns
        try:
            self.parquet = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise BadShard(f"is not a complete Parquet file ({error})") from error
        present = self.parquet.schema_arrow.names
        for key, column in (("image_column", columns.image), ("caption_column", columns.caption)):
            if column not in present:
                raise BadShard(f"has no column {column} (dataset.{key}); its columns are {', '.join(present)}")

    def group(self, number: int, *columns: str) -> pa.Table:
        try:
            return self.parquet.read_row_group(number, columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise BadShard(f"can't be read ({error})") from error

    def contents(self, addresses: Sequence[tuple[int, int]]) -> list[bytes]:
        """The image files at some addresses; each row group is read once."""
        groups = {number: self.group(number, self.columns.image) for number in {group for group, _ in addresses}}
        return [_image(groups[group][self.columns.image][row].as_py()) for group, row in addresses]

    def __iter__(self) -> Iterator[ShardItem]:
        number = 0
        for group in range(self.parquet.num_row_groups):
            table = self.group(group, self.columns.image, self.columns.caption)
            for row in range(len(table)):
                content = _image(table[self.columns.image][row].as_py())
                caption = table[self.columns.caption][row].as_py()
                yield ShardItem(f"row {number}", caption, (group, row), content, "" if content else "contains no image")
                number += 1


def _image(value: Any) -> bytes:
    """The bytes of an image; none for a path, as a shard holds its images."""
    try:
        return content_of(value)[0] or b""
    except BadImage:
        return b""


FORMATS = {".tar": Tar, ".parquet": Rows}
