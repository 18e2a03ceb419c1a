"""Folders of packs, to which any number of processes add entries."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from t2i.config import ConfigError
from t2i.data.cache_files import (
    locked,
    passing_over_damage,
    publishing,
    read_memo,
    refuse_other_kinds,
    write_memo,
)
from t2i.data.packs import KEY_BYTES, Entries, Pack, Packed, serialized

NAME = re.compile(r"([0-9]{6,})-([0-9a-f]{32})\.safetensors")


def key_of(content: str) -> bytes:
    """The key of an entry, by what it is made of."""
    return hashlib.sha256(content.encode(errors="surrogatepass")).digest()[:KEY_BYTES]


class PackFolder:
    """The packs of one encoder.

    A pack is named by its number and by the hash of its content. It appears when it is complete. An entry that two
    processes have made is read from the pack that came first, so what a run reads never changes.
    """

    def __init__(self, folder: Path, encoder: str):
        """encoder: a hash of it, which every pack carries."""
        self.folder, self.encoder = folder, encoder
        self.memo = folder / "checked.json"  # size and times of each pack when its hash was last computed

    def find(self, keys: Sequence[bytes]) -> Entries:
        """Where the entries with these keys are. Damaged packs are removed, of which a warning tells."""
        packs, places = [], dict.fromkeys(keys, (-1, 0))
        with locked(self.memo):  # of two processes that start at once, one checks
            known, checked = read_memo(self.memo) or {}, {}
            for file in self._files():
                state = _state(file)
                pack = self._opened(file, check=known.get(file.name) != state)
                if pack is None:
                    continue
                checked[file.name] = state
                new = {key: (len(packs), row) for row, key in enumerate(pack.keys) if places.get(key, (0, 0))[0] < 0}
                places |= new
                packs += [pack] * bool(new)
            if checked != known:
                write_memo(self.memo, checked)
        for pack in packs:
            if pack.layout != packs[0].layout:
                raise ConfigError(
                    f"{pack.file} and {packs[0].file} hold different kinds of entries; delete the wrong one"
                )
        found = np.array([places[key] for key in keys], dtype=np.int64).reshape(len(keys), 2)
        return Entries(packs, found[:, 0], found[:, 1])

    def add(self, entries: Mapping[bytes, Mapping[str, Packed]]) -> None:
        """Store some entries as a pack. If the disk is full, nothing is left behind."""
        content = serialized(entries, {"encoder": self.encoder})
        temporary = self.folder / ".pack.tmp"
        with locked(self.memo):
            number = max((_number(file) for file in self._files()), default=-1) + 1
            file = self.folder / f"{number:06d}-{_hash(content)}.safetensors"
            with publishing(temporary, file):
                temporary.write_bytes(content)
            write_memo(self.memo, (read_memo(self.memo) or {}) | {file.name: _state(file)})

    def _files(self) -> list[Path]:
        packs = [file for file in self.folder.glob("*.safetensors") if NAME.fullmatch(file.name)]
        return sorted(packs, key=lambda file: (_number(file), file.name))

    def _opened(self, file: Path, check: bool) -> Pack | None:
        """A pack; None if it is damaged. check: compute its hash, too."""
        refuse_other_kinds(file)
        with passing_over_damage(file):
            pack = Pack(file)  # first, as a file of terabytes of zeros is none
            if check and _hash(file) != file.stem.partition("-")[2]:
                raise ValueError("its checksum differs")
            if pack.about.get("encoder") != self.encoder:
                raise ValueError("it holds other encodings")
            return pack
        file.unlink()
        return None


def _number(file: Path) -> int:
    return int(file.name.partition("-")[0])


def _state(file: Path) -> list[int]:
    """Changes whenever the file is written to, renamed or copied."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _hash(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()[:32]
    with content.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
