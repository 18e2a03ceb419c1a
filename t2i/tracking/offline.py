"""W&B's offline files: read, and cut to where a resumed run goes on, so that `wandb sync` uploads every step once.

A file of 7 bytes and a log in LevelDB's format: blocks of 32 KiB, in them pieces of a checksum (4 bytes), a length (2)
and a kind (1: whole, 2: first, 3: middle, 4: last); the pieces join to records of W&B's protocol.
"""

import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_HEADER, BLOCK = 7, 32 * 1024
PIECE = struct.Struct("<IHB")
WHOLE, LAST = 1, 4


def repair(folder: Path, run_id: str, last_step: int) -> int:
    """Cut the run's files in `folder` to `last_step`, and what a crash tore; returns the last step that is left, or -1.

    Uploaded files are left alone: those with a mark of `wandb sync`, and those written online. Those without a row are
    removed: `wandb sync` stops at a file that a crash left empty, and passes over the run's later ones.
    """
    last = -1
    for file in _files(folder, run_id):
        uploaded = _mark(file).exists() or not _offline(file)
        end, step = extent(file.read_bytes(), float("inf") if uploaded else last_step)
        if not uploaded and step < 0:
            shutil.rmtree(file.parent)
        elif not uploaded:
            os.truncate(file, end)
        last = max(last, step)
    return last


def mark_uploaded(folder: Path, run_id: str) -> None:
    """Make `wandb sync` pass over the run's offline files, as it does with those that it has uploaded."""
    for file in filter(_offline, _files(folder, run_id)):
        _mark(file).touch()


def extent(data: bytes, last_step: float) -> tuple[int, int]:
    """Where the last whole record ends that is not of a later step than `last_step`, and the last step before it."""
    end = settled = min(FILE_HEADER, len(data))
    last = -1
    for end, record in records(data):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            step = step_of(record.history)
            if step > last_step:
                return settled, last
            last = step
        if kind not in ("summary", "files"):  # which stand before the row that they belong to
            settled = end
    return end, last


def records(data: bytes) -> Iterator[tuple[int, Any]]:
    """Each whole record, after the place where it ends; stops at the first that is torn or damaged."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    place, message = FILE_HEADER, b""
    while True:
        left = BLOCK - place % BLOCK
        if left < PIECE.size:  # the rest of a block is filled up
            place += left
        if place + PIECE.size > len(data):
            return
        checksum, length, kind = PIECE.unpack_from(data, place)
        piece = data[place + PIECE.size : place + PIECE.size + length]
        if len(piece) < length or checksum != zlib.crc32(piece, zlib.crc32(bytes([kind]))):
            return
        place += PIECE.size + length
        message += piece
        if kind in (WHOLE, LAST):
            try:
                yield place, Record.FromString(message)
            except DecodeError:
                return
            message = b""


def step_of(row: Any) -> int:
    """The step of a row, a `history` record."""
    return next(int(item.value_json) for item in row.item if item.key == "_step" or list(item.nested_key) == ["_step"])


def _files(folder: Path, run_id: str) -> list[Path]:
    """The run's, in the order of time. Their folders' names end in its id, or in a number: the second of one second."""
    return sorted(folder.glob(f"*run-*/run-{run_id}.wandb"))


def _offline(file: Path) -> bool:
    return file.parent.name.startswith("offline-")


def _mark(file: Path) -> Path:
    return file.with_suffix(".wandb.synced")
