"""The battery's errors, as the run folder keeps them: one Parquet file for each validation."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from t2i.runs.files import replacing, unreadable

MOST_VALUES = 20_000_000  # in the file of one validation; 64 images at 16 noise levels make a few thousand
LEVELS = ("log_snr", "timestep")  # columns of which there is one: the battery's noise levels


def write_errors(file: Path, level: str, values: np.ndarray, errors: dict[str, np.ndarray]) -> None:
    """One row per image and noise level: the epsilon error with raw (eps) and averaged weights (ema_eps).

    level: what the `values`, [K], are. errors: by prefix of the metrics ("", "ema/"), each [N, K].
    """
    assert level in LEVELS
    num_items = len(next(iter(errors.values())))
    columns = {"item": np.repeat(np.arange(num_items), len(values)), level: np.tile(values, num_items)}
    columns |= {f"{prefix.replace('/', '_')}eps": values.ravel() for prefix, values in errors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        pq.write_table(pa.table(columns), temporary)


def read_errors(file: Path) -> dict[str, np.ndarray]:
    """What `write_errors` wrote, by the same prefixes, each [N, K] in float64.

    Raises ConfigError if the file is damaged or holds something else.
    """
    try:
        return _read_errors(file)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError) as error:
        raise unreadable(file, error, "delete it to use the previous validation step") from error


def _read_errors(file: Path) -> dict[str, np.ndarray]:
    with pq.ParquetFile(file) as opened:
        shape = opened.metadata.num_rows, opened.metadata.num_columns
        if shape[0] * shape[1] > MOST_VALUES:  # few bytes can stand for any number of equal values
            raise ValueError(f"it has {shape[0]} rows of {shape[1]} columns")
        if any(not (pa.types.is_integer(kind) or pa.types.is_floating(kind)) for kind in opened.schema_arrow.types):
            raise ValueError("it holds something other than numbers")  # which could be of any size
        table = opened.read()
    level = LEVELS[0] if LEVELS[0] in table.column_names else LEVELS[1]
    num_levels = len(table[level].unique())
    columns = {name.removesuffix("eps").replace("_", "/"): name for name in table.column_names if name.endswith("eps")}
    errors = {prefix: table[name].to_numpy() for prefix, name in columns.items()}
    if "" not in errors or not len(table) or any(values.dtype != np.float64 for values in errors.values()):
        raise ValueError("it holds no errors")
    return {prefix: values.reshape(-1, num_levels) for prefix, values in errors.items()}
