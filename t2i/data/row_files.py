"""Arrow files of the cache: tables of encodings, each with a seal that tells whether it is as it was written."""

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa

from t2i.config import ConfigError
from t2i.data.cache_files import publish, read_memo, unwritable, warn_of_damage, write_memo


def read(file: Path, number: int) -> datasets.Dataset | None:
    """The rows of a file, memory-mapped; None if there is none, or if it is damaged, of which a warning tells."""
    if not file.exists():
        return None
    try:
        seal = read_memo(_seal(file))
        rows = _opened(file, number, complete=seal is None)
        if seal is None:
            _write_seal(file)
        elif seal.get("state") != _state(file):  # it was written to, or only copied
            if seal.get("sha256") != _hash(file):
                raise ValueError("its checksum differs")
            _write_seal(file)
    except (ConfigError, MemoryError):
        raise
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno == errno.ENOMEM:
            raise ConfigError(f"{file}, a file of the cache, can't be read ({error.strerror})") from error
        warn_of_damage(file, _first_line(error))
        return None
    except Exception as error:  # Arrow and `datasets` raise anything
        warn_of_damage(file, _first_line(error))
        return None
    return rows


def write(file: Path, make: Callable[[str], Any]) -> None:
    """Make a file: `make` writes it under the name that it is given."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.unlink(missing_ok=True)  # left by a killed process
    _seal(file).unlink(missing_ok=True)
    make(str(temporary))
    publish(temporary, file)
    _write_seal(file)


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
    """Raise ValueError for values that no encoder gives: what a power cut has left in files of earlier versions."""
    for name in table.column_names:
        for value in table.column(name):
            numbers = np.asarray(value.values.to_numpy(zero_copy_only=False))
            if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
                raise ValueError("it holds numbers that are not finite")
            if name == "moments" and not numbers[len(numbers) // 2 :].all():
                raise ValueError("it holds standard deviations of 0")


def _seal(file: Path) -> Path:
    return file.with_suffix(".json")


def _write_seal(file: Path) -> None:
    try:
        write_memo(_seal(file), {"sha256": _hash(file), "state": _state(file)})
    except OSError as error:
        raise unwritable(file.parent, error, "cache_dir") from error


def _state(file: Path) -> list[int]:
    """Changes whenever the file is written to, renamed or copied."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
