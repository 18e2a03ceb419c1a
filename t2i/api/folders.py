"""Where runs are: paths, or names in multirun/."""

from pathlib import Path


def find_folder(path: str | Path) -> Path:
    """The folder that a path means, or a name in multirun/ if there is no such path."""
    folder = Path(path).expanduser()
    inside = Path("multirun") / folder
    return inside if not folder.exists() and not folder.is_absolute() and inside.is_dir() else folder


def nearby(folder: Path) -> Path:
    """The folder as seen from the current one, if it lies below it."""
    here = Path.cwd().resolve()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
