"""Which option of `dataset` reads what a path holds."""

from pathlib import Path, PurePosixPath

from t2i.config import ConfigError
from t2i.data.folder_files import walk
from t2i.data.images import SUFFIXES
from t2i.data.local_folders import is_saved
from t2i.data.metadata_files import NAMES
from t2i.hub import is_repository


def option_for(path: str) -> list[str]:
    """The override that chooses the option. Raises ConfigError if there is nothing at the path."""
    place = Path(path).expanduser()
    if place.is_dir():
        return [f"dataset={_of_folder(place)}"]
    if place.is_file() and place.suffix in (".tar", ".parquet"):
        return ["dataset=webdataset"]
    if place.is_file():
        raise ConfigError(f"{path} is a file; give the folder of the images")
    if is_repository(path):
        return ["dataset=hub"]
    raise ConfigError(f"{path} is neither a folder nor the id of a data set of the Hub (OWNER/NAME)")


def _of_folder(folder: Path) -> str:
    if is_saved(folder):
        return "hub"
    names = [PurePosixPath(name.lower()) for name in walk(folder, follow_links=True).stats]
    kinds = {name.suffix for name in names if name.name not in NAMES}
    if kinds & SUFFIXES:
        return "folder"
    return "webdataset" if ".tar" in kinds else "hub" if ".parquet" in kinds else "folder"
