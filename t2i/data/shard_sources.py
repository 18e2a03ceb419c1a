"""Sources of shards: files on this machine, and a repository of the Hub, a few of whose shards are kept here."""

import glob
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from t2i.config import ConfigError
from t2i.data.cache_files import UNWRITABLE, held, publish
from t2i.data.folder_files import is_below, outside_problem, warn_of
from t2i.data.shards import FORMATS, Shard
from t2i.hub import PAUSES, check_reachable, is_final, is_repository, reason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """Shards on this machine, read in place."""

    root: Path

    @classmethod
    def find(cls, path: str, follow_links: bool = False) -> tuple["Files", list[Shard]]:
        """All shards of a folder and those below it, or of a pattern such as images/train-*.tar, by name.

        Raises ConfigError if a link leads to a shard outside the folder, unless follow_links is set.
        """
        root, pattern = _pattern(Path(path).expanduser())
        names = sorted(Path(file).as_posix() for file in glob.glob(pattern, root_dir=root, recursive=True))
        shards, followed = [], []
        for name in names:
            if PurePosixPath(name).suffix in FORMATS and (root / name).is_file():
                if not is_below(root / name, [root]):
                    if not follow_links:
                        raise ConfigError(f"dataset.path: {root / name} {outside_problem(root / name)}")
                    followed.append(name)
                stat = (root / name).stat()
                state = f"{(root / name).resolve()} {stat.st_size} {stat.st_mtime_ns}"
                shards.append(Shard(name, str(stat.st_size), state, f"{stat.st_ctime_ns} {stat.st_ino}"))
        warn_of(followed, path)
        return cls(root), shards

    def open(self, shard: Shard, protected: Sequence[Shard] = ()) -> BinaryIO:
        try:
            return (self.root / shard.name).open("rb")
        except OSError as error:
            raise ConfigError(f"dataset.path: the shard {self.root / shard.name} can't be opened ({error})") from error


def _pattern(given: Path) -> tuple[Path, str]:
    """The folder in which to search, and the pattern for it. What exists as it is written is no pattern."""
    if given.is_dir():
        return given, "**/*"
    if given.is_file():
        return given.parent, glob.escape(given.name)
    root, rest = Path(), list(given.parts)
    while len(rest) > 1 and (not glob.has_magic(rest[0]) or (root / rest[0]).is_dir()):
        root, rest = root / rest[0], rest[1:]
    return root, "/".join(rest)


@dataclass(frozen=True)
class Repository:
    """Shards in a data set's repository of the Hub. All processes here together keep at most `keep` on the disk.

    The shard that was not used for longest is evicted first; a process that is reading it is not disturbed.
    """

    path: str
    commit: str | None
    folder: Path
    keep: int
    pauses: Sequence[float] = PAUSES  # seconds, before each further attempt

    @classmethod
    def find(cls, path: str, revision: str | None, folder: Path, keep: int) -> tuple["Repository", list[Shard]]:
        """The repository as it is now, and all its shards by name. folder: for the shards that are kept here."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile
        from huggingface_hub.utils import httpx

        if not is_repository(path):
            raise ConfigError(
                f"dataset.path={path} is not a repository of the Hub (OWNER/NAME); for shards on this machine, use "
                "dataset=webdataset"
            )
        check_reachable("dataset.path", path, "dataset")
        try:
            commit = HfApi().dataset_info(path, revision=revision).sha
            tree = list(HfApi().list_repo_tree(path, recursive=True, revision=commit, repo_type="dataset"))
        except (httpx.HTTPError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"dataset.path={path} can't be read ({reason(error)}); give the id of an accessible data set, and as "
                "dataset.revision null or a revision that exists"
            ) from error
        shards = []
        for file in sorted((entry for entry in tree if isinstance(entry, RepoFile)), key=lambda file: file.path):
            if PurePosixPath(file.path).suffix in FORMATS:
                content = file.lfs.sha256 if file.lfs else file.blob_id
                shards.append(Shard(file.path, content, content))
        return cls(path, commit, folder / re.sub(r"[^\w.-]", "--", path), keep), shards

    def open(self, shard: Shard, protected: Sequence[Shard] = ()) -> BinaryIO:
        """The shard's file, fetched if it is not here; ConfigError if all attempts fail."""
        try:
            return self._open_kept(shard)
        except FileNotFoundError:
            pass
        with held(self.folder / ".lock"):  # processes that fetched at the same time would keep more than `keep`
            try:
                return self._open_kept(shard)  # another process was faster
            except FileNotFoundError:
                self._evict({self._file(other) for other in protected})
                self._fetch(shard)
                return self._open_kept(shard)

    def _open_kept(self, shard: Shard) -> BinaryIO:
        opened = self._file(shard).open("rb")
        if os.fstat(opened.fileno()).st_size == 0:  # a power cut has left nothing of it
            opened.close()
            raise FileNotFoundError(self._file(shard))
        os.utime(opened.fileno())  # the time of last use, for eviction; not by name, which another process may remove
        return opened

    def _file(self, shard: Shard) -> Path:
        key = hashlib.sha256(repr(shard).encode()).hexdigest()[:32]
        return self.folder / f"{key}{PurePosixPath(shard.name).suffix}"

    def _evict(self, protected: set[Path]) -> None:
        """Remove shards until one more may be kept: the longest unused first, protected ones last."""
        kept = [file for file in self.folder.iterdir() if file.suffix in FORMATS]
        kept.sort(key=lambda file: (file in protected, file.stat().st_mtime_ns))
        for file in kept[: max(0, len(kept) + 1 - self.keep)]:
            file.unlink()

    def _fetch(self, shard: Shard) -> None:
        from huggingface_hub.utils import httpx

        for pause in (*self.pauses, None):
            try:
                self._download(shard)
                return
            except (httpx.HTTPError, OSError, RuntimeError) as error:
                if isinstance(error, OSError) and error.errno in UNWRITABLE:
                    raise
                if pause is None or is_final(error):
                    raise ConfigError(
                        f"dataset.path={self.path}: {shard.name} can't be fetched ({reason(error)}); once it is "
                        "available, repeat the command with the same run=NAME to continue from the last checkpoint"
                    ) from error
                log.warning("fetching %s failed (%s); retrying in %g s", shard.name, reason(error), pause)
                time.sleep(pause)

    def _download(self, shard: Shard) -> None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import disable_progress_bars

        incoming = self.folder / "incoming"
        shutil.rmtree(incoming, ignore_errors=True)  # left by a killed process
        disable_progress_bars()
        log.info("fetching %s", shard.name)
        file = hf_hub_download(self.path, shard.name, repo_type="dataset", revision=self.commit, local_dir=incoming)
        publish(Path(file), self._file(shard))
        shutil.rmtree(incoming, ignore_errors=True)


def matching(shards: list[Shard], pattern: str | None) -> list[Shard]:
    """The shards whose name matches; in a pattern, * matches any text, slashes included."""
    return [shard for shard in shards if pattern is not None and fnmatch(shard.name, pattern)]
