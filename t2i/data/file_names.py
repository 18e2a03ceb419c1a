"""Which file of a data folder a metadata file means: names are often written on another machine, or by hand."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from t2i.data.images import SUFFIXES


def composed(name: str) -> str:
    """The name in one Unicode form: file systems and metadata files may compose accents differently."""
    return unicodedata.normalize("NFC", name)


class FileNames:
    """The files of a folder, found by names that differ from theirs in case, blanks, slashes or the suffix."""

    def __init__(self, root: Path, names: Iterable[str]):
        self.roots = {root.absolute().as_posix(), root.resolve().as_posix()}
        self.own_names = {Path(folder).name for folder in self.roots} - {""}
        self.exact = {composed(name): name for name in names}
        self.loose: dict[str, list[str]] = defaultdict(list)
        for name in self.exact.values():
            self.loose[_loose(name)].append(name)
            if PurePosixPath(name).suffix.lower() in SUFFIXES:
                self.loose[_loose(name.rpartition(".")[0])].append(name)

    def find(self, listing: str, written: object) -> tuple[str, str]:
        """The file that a row of the metadata file `listing` names, relative to the folder; and the problem with it."""
        if not isinstance(written, str) or not written.strip():
            return "", "is not a file name"
        folder = listing.rpartition("/")[0]
        places = list(dict.fromkeys(self._places(folder, written)))
        for place in places:
            if (name := self.exact.get(composed(place))) is not None:
                return name, ""
        for place in places:
            if len(names := self.loose.get(_loose(place), [])) == 1:
                return names[0], ""
            if names:
                return "", f"could be {' or '.join(sorted(names))}; write the name as it is"
        first = os.path.normpath(f"{folder or '.'}/{written}")
        inside = any(written.strip().startswith(f"{root}/") for root in self.roots)
        if not places or (os.path.isabs(written) and not inside) or first.startswith(".."):
            return first, "points outside the data folder"
        return first, "does not exist"

    def _places(self, folder: str, written: str) -> Iterator[str]:
        """The paths within the folder that may be meant, the likeliest first."""
        for text in dict.fromkeys((written, written.strip(), written.strip().replace("\\", "/"))):
            for root in self.roots:
                if text.startswith(f"{root}/"):
                    yield os.path.normpath(text.removeprefix(f"{root}/"))
            if not os.path.isabs(text):
                name = os.path.normpath(f"{folder or '.'}/{text}")
                if not name.startswith(".."):
                    yield name
            parts = [part for part in text.split("/") if part not in ("", ".")]
            for i in [i for i, part in enumerate(parts[:-1]) if part in self.own_names]:
                if ".." not in parts:  # from the folder's own name on, as in pics/1.png
                    yield "/".join(parts[i + 1 :])


def _loose(name: str) -> str:
    return composed(name).casefold().strip()
