"""The prompts of the image battery: a list, a text file, a column of a table, or of a data set of the Hub."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from t2i.config import ConfigError
from t2i.hub import check_reachable, is_repository
from t2i.runs.links import read_regular
from t2i.runs.text import one_line

LARGEST = 100_000_000  # bytes of a file of prompts
MOST_ROWS = 10_000_000  # of a table: few bytes of Parquet can stand for any number of equal values
COLUMNS = ("prompt", "caption", "text")  # where column is null
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
SUFFIXES = (".txt", *TABLES)


def read_prompts(
    source: str | Sequence[str],
    column: str | None = None,
    count: int | None = None,
    setting: str = "evaluation.prompts",
) -> list[str]:
    """Prompts, each once, in their order; at most `count`, spread evenly over all.

    source: a list; or a .txt file with a prompt in each line; or a .csv, .tsv, .jsonl or .parquet file with a
    `column`; or the id of a data set of the Hub with such files, of which those of its split train are read.
    setting: what messages call it.
    """
    if not isinstance(source, str):
        texts = list(source)
    elif is_repository(source):
        texts = [text for file in _fetched(source, setting) for text in _from_file(file, column, setting)]
    else:
        texts = _from_file(Path(source).expanduser(), column, setting)
    prompts = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not prompts:
        raise ConfigError(f"{setting}={source} holds no prompt; write one in each line")
    if count is not None and len(prompts) > count:
        prompts = [prompts[(2 * index + 1) * len(prompts) // (2 * count)] for index in range(count)]
    return prompts


def _fetched(path: str, setting: str) -> list[Path]:
    """The files with prompts of a data set of the Hub: those of its split train, or all if none is called so."""
    from huggingface_hub import snapshot_download

    check_reachable(setting, path, "dataset")
    try:
        folder = Path(
            snapshot_download(path, repo_type="dataset", allow_patterns=[f"*{suffix}" for suffix in SUFFIXES])
        )
    except (OSError, ValueError, RuntimeError) as error:  # of requests, of names, of the cache
        raise ConfigError(f"{setting}={path} can't be fetched ({one_line(error)})") from error
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in TABLES and file.is_file())
    files = files or sorted(folder.rglob("*.txt"))
    chosen = [file for file in files if "train" in file.relative_to(folder).as_posix().lower()] or files
    if not chosen:
        raise ConfigError(f"{setting}={path} has no {', '.join(SUFFIXES)} file; give a file of prompts")
    return chosen


def _from_file(file: Path, column: str | None, setting: str) -> list[str]:
    kind = file.suffix.lower()
    if not file.is_file():
        raise ConfigError(f"{setting}={file} is not a file; give a .txt, {', '.join(TABLES)} file, or null")
    if kind in TABLES:
        return _from_table(file, column, setting)
    if kind != ".txt":
        raise ConfigError(f"{setting}={file} must be a .txt, {' or '.join(TABLES)} file")
    try:
        return read_regular(file, LARGEST).splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting}={file} can't be read ({one_line(error)})") from error


def _from_table(file: Path, column: str | None, setting: str) -> list[str]:
    try:
        table = _table(file, (column,) if column else COLUMNS)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise ConfigError(f"{setting}={file} can't be read ({one_line(error)})") from error
    names = table.column_names
    chosen = column or next((name for name in COLUMNS if name in names), None)
    if chosen not in names:
        wanted = f"evaluation.column={column}" if column else f"one of {', '.join(COLUMNS)}"
        raise ConfigError(f"{setting}={file} has the columns {', '.join(names)}, but not {wanted}")
    if names.count(chosen) > 1:
        raise ConfigError(f"{setting}={file} has {names.count(chosen)} columns {chosen}; leave one")
    kind = table[chosen].type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise ConfigError(f"evaluation.column={chosen} of {file} holds something other than texts")
    return [value for value in table[chosen].unify_dictionaries().unique().to_pylist() if value is not None]


def _table(file: Path, columns: Sequence[str]) -> pa.Table:
    """The table; of Parquet these columns alone, in which equal texts stay one."""
    if file.suffix.lower() == ".parquet":
        facts = pq.read_metadata(file)
        if facts.num_rows > MOST_ROWS:
            raise ValueError(f"it has {facts.num_rows} rows")
        flat = {facts.schema.column(number).path for number in range(facts.num_columns)}
        with pq.ParquetFile(file, read_dictionary=[name for name in columns if name in flat]) as opened:
            wanted = [name for name in columns if name in opened.schema_arrow.names]
            return opened.read(wanted) if wanted else opened.schema_arrow.empty_table()
    if file.stat().st_size > LARGEST:
        raise ValueError(f"it has {file.stat().st_size} bytes")
    if file.suffix.lower() == ".jsonl":
        return pa.json.read_json(file)
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    return pa.csv.read_csv(file, parse_options=pa.csv.ParseOptions(delimiter=delimiter))
