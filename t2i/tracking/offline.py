"""W&B's offline files, cut to the step at which a resumed run continues, so that `wandb sync` uploads every step once.

A file is a header of 7 bytes and a log in LevelDB's format: blocks of 32 KiB that contain pieces, each with a checksum
(4 bytes), a length (2) and a kind (1: complete, 2: first, 3: middle, 4: last). The pieces join to records of W&B's
protocol. W&B does not document the format; only `records` and `step_of` depend on it.
"""

import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

FILE_HEADER, BLOCK = 7, 32 * 1024
PIECE = struct.Struct("<IHB")
COMPLETE, LAST = 1, 4


def repair(folder: Path, run_id: str, last_step: int) -> int:
    """Cut the run's files in `folder` after `last_step` and at torn records; returns the last step left, or -1.

    Uploaded files, which `wandb sync` has marked or which were written online, are not changed. Files without a row are
    removed, because `wandb sync` stops at a file that a crash left empty and skips the run's later ones.
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
    """Make `wandb sync` skip the run's offline files, as if it had uploaded them."""
    for file in filter(_offline, _files(folder, run_id)):
        _mark(file).touch()


def extent(data: bytes, last_step: float) -> tuple[int, int]:
    """The position after the last complete record up to `last_step`, and the last step before it, or -1."""
    end = row_end = min(FILE_HEADER, len(data))
    last = -1
    for end, record in records(data):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            step = step_of(record.history)
            if step > last_step:
                return row_end, last
            last = step
        if kind not in ("summary", "files"):  # these precede the row that they belong to
            row_end = end
    return end, last


def records(data: bytes) -> Iterator[tuple[int, Any]]:
    """(the position of its end, the record) for each complete record; stops at the first that is torn or damaged."""
    from google.protobuf.message import DecodeError

    record = import_module("wandb.proto.wandb_internal_pb2").Record  # defined at run time, for the installed protobuf
    position, message = FILE_HEADER, b""
    while True:
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < PIECE.size:  # filled up with zeros
            position += left_in_block
        if position + PIECE.size > len(data):
            return
        checksum, length, kind = PIECE.unpack_from(data, position)
        piece = data[position + PIECE.size : position + PIECE.size + length]
        if len(piece) < length or checksum != zlib.crc32(piece, zlib.crc32(bytes([kind]))):
            return
        position += PIECE.size + length
        message += piece
        if kind in (COMPLETE, LAST):
            try:
                yield position, record.FromString(message)
            except DecodeError:
                return
            message = b""


def step_of(row: Any) -> int:
    """The step of a `history` record."""
    return next(int(item.value_json) for item in row.item if item.key == "_step" or list(item.nested_key) == ["_step"])


def _files(folder: Path, run_id: str) -> list[Path]:
    """The run's files, oldest first. A folder's name ends in the run's id, or has a number after it if W&B started
    two within a second."""
    return sorted(folder.glob(f"*run-*/run-{run_id}.wandb"))


def _offline(file: Path) -> bool:
    return file.parent.name.startswith("offline-")


def _mark(file: Path) -> Path:
    return file.with_suffix(".wandb.synced")
