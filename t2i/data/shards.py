"""Shards, many images in one file: tar files as WebDataset packs them, and Parquet files as on the Hub."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from t2i.data.image_folder import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Shard:
    """A file of a set, which need not be on this machine."""

    name: str
    content: str  # changes with what is in it: its size, or a hash
    state: str  # the same, but may also change when the file is only copied


@dataclass(frozen=True)
class Columns:
    """image: of Parquet files. caption: of Parquet files; of a tar file `txt`, or else a field of KEY.json."""

    image: str
    caption: str


class BadShard(ValueError):
    """What is wrong with a shard, in words that follow its name."""


@dataclass(frozen=True)
class Found:
    """An item as it stands in a shard. where: offset and size in a tar file; row group and row of a Parquet file."""

    name: str
    caption: Any
    where: tuple[int, int]
    content: bytes
    problem: str = ""


class Tar:
    """Files of one name but for the suffix are an item: KEY.jpg (or .png, .webp, ...) with KEY.txt or KEY.json."""

    def __init__(self, file: BinaryIO, columns: Columns):
        self.file, self.columns = file, columns

    def read(self, where: tuple[int, int]) -> bytes:
        offset, size = where
        self.file.seek(offset)
        return self.file.read(size)

    def contents(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.read(where) for where in places]

    def __iter__(self) -> Iterator[Found]:
        for key, members in self._members().items():
            images = [where for suffix, where in members if f".{suffix}" in IMAGE_SUFFIXES]
            caption, problem = self._caption(key, dict(members))
            if len(images) != 1:
                names = ", ".join(f"{key}.{suffix}" for suffix, _ in members)
                problem = f"has {'several images' if images else 'no image'} ({names})"
            where = (0, 0) if problem else images[0]
            yield Found(key, caption, where, b"" if problem else self.read(where), problem)

    def _members(self) -> dict[str, list[tuple[str, tuple[int, int]]]]:
        """Key -> the suffixes of its files, and where they lie.

        Raises BadShard unless the end is marked as tar does it: Python's reader takes a torn file for a short one.
        """
        members: dict[str, list[tuple[str, tuple[int, int]]]] = {}
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as tar:
                for member in tar:
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    if member.isfile() and stem:
                        place = member.offset_data, member.size
                        members.setdefault(folder + slash + stem, []).append((suffix.lower(), place))
                end = tar.offset
        except (tarfile.TarError, OSError) as error:
            raise BadShard(f"is no whole tar file ({error})") from error
        if self.read((end, tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
            raise BadShard(f"is truncated or damaged after {end} bytes: no end of a tar file")
        return members

    def _caption(self, key: str, members: dict[str, tuple[int, int]]) -> tuple[Any, str]:
        """What is found as the caption of an item, and why there is none."""
        wanted = "txt" if self.columns.caption == "txt" else "json"
        if wanted not in members:
            return None, f"has no caption: no {key}.{wanted} beside it (see dataset.caption_column)"
        try:
            text = self.read(members[wanted]).decode("utf-8-sig")
            return (text.strip() if wanted == "txt" else json.loads(text)[self.columns.caption]), ""
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            return None, f"has no caption: {key}.{wanted} can't be used ({reason})"


class Rows:
    """A column of images, each {bytes, path} or bytes alone, and a column of captions."""

    def __init__(self, file: BinaryIO, columns: Columns):
        self.columns = columns
        try:
            self.parquet = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise BadShard(f"is no whole Parquet file ({error})") from error
        there = self.parquet.schema_arrow.names
        for key, column in (("image_column", columns.image), ("caption_column", columns.caption)):
            if column not in there:
                raise BadShard(f"has no column {column}, as dataset.{key} says; its columns are {', '.join(there)}")

    def group(self, number: int, *columns: str) -> pa.Table:
        try:
            return self.parquet.read_row_group(number, columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise BadShard(f"can't be read ({error})") from error

    def contents(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Each row group is read once."""
        groups = {number: self.group(number, self.columns.image) for number in {group for group, _ in places}}
        return [_image(groups[group][self.columns.image][row].as_py()) for group, row in places]

    def __iter__(self) -> Iterator[Found]:
        number = 0
        for group in range(self.parquet.num_row_groups):
            table = self.group(group, self.columns.image, self.columns.caption)
            for row in range(len(table)):
                content = _image(table[self.columns.image][row].as_py())
                caption = table[self.columns.caption][row].as_py()
                yield Found(f"row {number}", caption, (group, row), content, "" if content else "holds no image")
                number += 1


def _image(value: Any) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else b""


FORMATS = {".tar": Tar, ".parquet": Rows}
