"""Metadata files: JSON Lines, CSV or Parquet, with a row for each image."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from t2i.config import ConfigError
from t2i.data.text_files import WESTERN, encoding_of

LONGEST = 1_000_000  # bytes of a line of metadata, and of a .txt file
MOST_ROWS = 50_000_000  # of a metadata file
NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
DELIMITERS = ",;\t|"
SURPLUS = ""  # the key of a problem with a row's fields; no column has this name


class Row(NamedTuple):
    """What a row of a metadata file says of an image."""

    file_name: object
    caption: object  # or several
    problem: str  # with its fields; empty if there is none
    loss_weight: object = 1.0


def rows(file: Path, caption_column: str, loss_weight_column: str | None = None) -> Iterator[Row]:
    """The rows of a metadata file. Raises ConfigError if it can't be read, or lacks one of these columns."""
    weights = [] if loss_weight_column is None else [loss_weight_column]
    try:
        columns, table = _table(file, ("file_name", caption_column, *weights))
    except (OSError, ValueError, TypeError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(f"dataset.path: {file} can't be read ({error}); fix or remove it") from error
    present = ", ".join(map(str, columns)) or "none"
    if "file_name" not in columns:
        raise ConfigError(f"dataset.path: {file} has no column file_name; its columns are {present}")
    if caption_column not in columns:
        raise ConfigError(f"dataset.caption_column={caption_column} is not in {file}; its columns are {present}")
    if loss_weight_column is not None and loss_weight_column not in columns:
        raise ConfigError(
            f"dataset.loss_weight_column={loss_weight_column} is not in {file}; its columns are {present}"
        )
    for row in table:
        weight = 1.0 if loss_weight_column is None else as_number(row.get(loss_weight_column))
        yield Row(row.get("file_name"), row.get(caption_column), row.get(SURPLUS, ""), weight)


def as_number(value: object) -> object:
    """The number that a text of a table stands for; other values as they are."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _table(file: Path, wanted: Sequence[str]) -> tuple[Sequence[str], list[dict]]:
    """All columns of a metadata file, and its rows with the wanted ones."""
    if file.suffix.lower() == ".parquet":
        with pq.ParquetFile(file) as table:
            columns, number = table.schema_arrow.names, table.metadata.num_rows
            if number > MOST_ROWS:  # few bytes can stand for any number of equal rows
                raise ValueError(f"it has {number} rows; it may have {MOST_ROWS}")
            return columns, table.read([name for name in wanted if name in columns]).to_pylist()
    read = _csv if file.suffix.lower() == ".csv" else _json_lines
    with file.open("rb") as stream:
        encoding = encoding_of(stream.read(1000).partition(b"\n")[0])
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    try:
        return read(file, encoding, wanted)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise
        return read(file, WESTERN[0], wanted)


def _csv(file: Path, encoding: str, wanted: Sequence[str]) -> tuple[Sequence[str], list[dict]]:
    with file.open(encoding=encoding, newline="") as text:
        lines = _bounded(text)
        header = next(lines, "")
        delimiter = _delimiter(header, wanted)
        given = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True, strict=True), [])
        columns = [name.strip() for name in given]
        table = []
        for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True):
            if not row:
                continue
            fields = dict(zip(columns, row, strict=False))
            table.append({name: fields.get(name) for name in wanted})
            if any(field.strip() for field in row[len(columns) :]):
                last = f"{delimiter} ".join(row[len(columns) - 1 :])
                table[-1][SURPLUS] = f'has {len(row)} fields, {len(columns)} columns; quote it, as in "{last}"'
        return columns, table


def _delimiter(header: str, wanted: Sequence[str]) -> str:
    """What separates the columns: a comma, unless the wanted names are found with something else."""

    def found(delimiter: str) -> int:
        return len({name.strip().strip('"') for name in header.split(delimiter)} & set(wanted))

    return max(DELIMITERS, key=found)


def _json_lines(file: Path, encoding: str, wanted: Sequence[str]) -> tuple[Sequence[str], list[dict]]:
    columns, table = dict[str, None](), []
    with file.open(encoding=encoding) as text:
        for row in (json.loads(line) for line in _bounded(text) if line.strip()):
            if not isinstance(row, dict):
                raise ValueError('a line is not an object, such as {"file_name": "1.png", "text": "a heart"}')
            columns |= dict.fromkeys(row)
            table.append({name: row[name] for name in wanted if name in row})
    return list(columns), table


def _bounded(text: TextIO) -> Iterator[str]:
    """The lines of a file, which is refused at one that would fill the memory."""
    number = 0
    while line := text.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise ValueError(f"line {number} is longer than {LONGEST} characters")
        yield line
