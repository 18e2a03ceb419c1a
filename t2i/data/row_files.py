"""Arrow files in which caches of earlier versions hold the encodings of a whole list; they are read, never written.

Each has a seal, a JSON file beside it that tells whether it is as it was written; the first of them had none.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import datasets
import numpy as np
import pyarrow as pa
import torch

from t2i.data.cache_files import passing_over_damage, read_memo
from t2i.data.packs import Tensors


def read(file: Path, number: int) -> datasets.Dataset | None:
    """The rows of a file, memory-mapped; None if there is none, or if it is damaged, of which a warning tells."""
    if not file.is_file():
        return None
    with passing_over_damage(file):
        seal = read_memo(file.with_suffix(".json"))
        rows = _opened(file, number, complete=seal is None)
        if seal is not None and seal.get("sha256") != _hash(file):
            raise ValueError("its checksum differs")
        return rows
    return None


def entries(rows: datasets.Dataset, places: list[int]) -> Sequence[Tensors]:
    """The tensors of some rows, as `t2i.data.latent_cache` stores them now."""
    table = cast(pa.Table, rows[places])
    if "framing" in table.column_names:
        return [
            {"moments": _tensor(row["moments"], [2, *row["shape"].as_py()]), "framing": _tensor(row["framing"], [6])}
            for row in _rows(table)
        ]
    names = [name for name in table.column_names if not name.endswith(".shape")]
    return [{name: _tensor(row[name], row[f"{name}.shape"].as_py()) for name in names} for row in _rows(table)]


def _rows(table: pa.Table) -> list[dict[str, pa.Scalar]]:
    return [{name: table.column(name)[row] for name in table.column_names} for row in range(len(table))]


def _tensor(value: pa.Scalar, shape: list[int]) -> torch.Tensor:
    return torch.from_numpy(value.values.to_numpy(zero_copy_only=False).copy()).view(shape)


def _opened(file: Path, number: int, complete: bool) -> datasets.Dataset:
    """The rows, if they are as many as expected and of the file's key. complete: read all values, too."""
    rows = datasets.Dataset.from_file(str(file))
    metadata = json.loads((rows.data.schema.metadata or {}).get(b"huggingface", b"{}"))
    key = file.stem.rpartition("-")[2]
    if metadata.get("fingerprint") not in (None, key):
        raise ValueError("it holds other encodings")
    if len(rows) != number:
        raise ValueError(f"it has {len(rows)} rows instead of {number}")
    columns = set(rows.column_names)
    if columns != {"moments", "shape", "framing"} and not _has_shapes(columns):
        raise ValueError(f"its columns are {', '.join(sorted(columns)) or 'none'}")
    rows = cast(datasets.Dataset, rows.with_format("arrow"))
    if complete:
        for table in rows.iter(64):
            _check_values(cast(pa.Table, table))
    return rows


def _has_shapes(columns: set[str]) -> bool:
    """Whether each embedding has a column with its shape."""
    names = {name for name in columns if not name.endswith(".shape")}
    return bool(names) and columns == names | {f"{name}.shape" for name in names}


def _check_values(table: pa.Table) -> None:
    """Raise ValueError for values that no encoder gives: what a power cut has left in files without a seal."""
    for name in table.column_names:
        for value in table.column(name):
            numbers = np.asarray(value.values.to_numpy(zero_copy_only=False))
            if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
                raise ValueError("it holds numbers that are not finite")
            if name == "moments" and not numbers[len(numbers) // 2 :].all():
                raise ValueError("it holds standard deviations of 0")


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
