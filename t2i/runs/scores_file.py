"""What a metric of images found, as a folder of images keeps it: one Parquet file for each metric."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from t2i.runs.files import refuse_deep, replacing, unreadable
from t2i.runs.full_disk import naming
from t2i.runs.links import refuse_links_out
from t2i.runs.records import sync

MOST_VALUES = 100_000_000  # of one metric; 64 prompts with 2 seeds have 128
KEY = b"t2i"  # of the file's metadata
TYPES = {"value": float, "better": str, "identity": str, "notes": list, "details": dict}
REMEDY = "delete it, and `t2i evaluate` computes it again"


@dataclass(frozen=True)
class StoredScores:
    """The scores of one model for one image battery; see `t2i.evaluation.image_metrics.metric.Scores`."""

    values: np.ndarray  # [P, S] in float64
    value: float
    better: str  # higher or lower
    identity: str
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def scores_file(images: Path, metric: str) -> Path:
    return images / "scores" / f"{metric}.parquet"


def write_scores(images: Path, metric: str, scores: StoredScores) -> None:
    """Store the scores of a metric for a folder of images, atomically."""
    file = scores_file(images, metric)
    file.parent.mkdir(exist_ok=True)
    refuse_links_out(images, file)
    rows, columns = scores.values.shape
    facts = asdict(scores)
    values = facts.pop("values")
    table = pa.table(
        {
            "row": np.repeat(np.arange(rows), columns),
            "image": np.tile(np.arange(columns), rows),
            "value": values.ravel(),
        }
    ).replace_schema_metadata({KEY: json.dumps(facts).encode()})
    with naming(file), replacing(file) as temporary:
        pq.write_table(table, temporary)
        sync(temporary)


def read_scores(images: Path, metric: str) -> StoredScores:
    """What `write_scores` wrote. Raises ConfigError if the file is damaged or holds something else."""
    file = scores_file(images, metric)
    try:
        return _read(file)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError, RecursionError) as error:
        raise unreadable(file, error, REMEDY) from error


def _read(file: Path) -> StoredScores:
    with pq.ParquetFile(file) as opened:
        if opened.metadata.num_rows * opened.metadata.num_columns > MOST_VALUES:
            raise ValueError(f"it has {opened.metadata.num_rows} rows")
        table = opened.read()
    facts = json.loads((table.schema.metadata or {})[KEY])
    refuse_deep(facts, file, REMEDY)
    if (
        not isinstance(facts, dict)
        or facts.keys() != TYPES.keys()
        or not all(isinstance(facts[key], kind) for key, kind in TYPES.items())
    ):
        raise ValueError("its facts are not those of scores")
    if facts["better"] not in ("higher", "lower") or not all(isinstance(note, str) for note in facts["notes"]):
        raise ValueError("its facts are not those of scores")
    values, images = table["value"].to_numpy(), table["image"].to_numpy()
    if values.dtype != np.float64 or not len(values) or images.dtype.kind != "i":
        raise ValueError("it holds no scores")
    return StoredScores(values.reshape(-1, int(images.max()) + 1), **facts)


def stored_metrics(images: Path) -> list[str]:
    """The metrics that a folder of images has scores of."""
    return sorted(file.stem for file in (images / "scores").glob("*.parquet") if not file.name.startswith("."))
