"""Runs that are named on the command line."""

from difflib import get_close_matches
from pathlib import Path

from t2i.config import ConfigError
from t2i.runs import config_file


def refuse_missing(source: str) -> None:
    """Refuse the name of a run that does not exist, in a folder that does, with the names of those that are there.

    Without it the name would be taken for a repository of the Hub.
    """
    path = Path(source)
    parent = path.parent
    if path.exists() or parent == Path() or not parent.is_dir():
        return
    runs = sorted(file.parent.name for file in parent.glob(f"*/{config_file.NAME}"))
    if not runs and parent.name != "multirun":
        return
    near = get_close_matches(path.name, runs, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(str(parent / name) for name in near)}?" if near else ""
    there = f"there are {', '.join(runs[:5])}{' ...' if len(runs) > 5 else ''}" if runs else "it holds no runs"
    raise ConfigError(f"{source}: no such run in {parent}/; {hint or there}")
