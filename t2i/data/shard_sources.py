"""Where shards come from: files that are here, and a repository of the Hub, of which a few are here at a time."""

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

from filelock import FileLock

from t2i.config import ConfigError
from t2i.data.shards import FORMATS, Shard
from t2i.hub import PAUSES, check_reachable, is_final, is_repository, reason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """Shards on this machine, read where they are."""

    root: Path

    @classmethod
    def find(cls, path: str) -> tuple["Files", list[Shard]]:
        """path: a folder, read with those below it, or a pattern such as images/train-*.tar."""
        place = Path(path).expanduser()
        pattern = place / "**" / "*" if place.is_dir() else place
        fixed = next((i for i, part in enumerate(pattern.parts) if glob.has_magic(part)), len(pattern.parts) - 1)
        root = Path(*pattern.parts[:fixed])
        names = sorted(Path(file).relative_to(root).as_posix() for file in glob.glob(str(pattern), recursive=True))
        shards = []
        for name in names:
            if PurePosixPath(name).suffix in FORMATS and (root / name).is_file():
                stat = (root / name).stat()
                state = f"{(root / name).resolve()} {stat.st_size} {stat.st_mtime_ns}"
                shards.append(Shard(name, str(stat.st_size), state))
        return cls(root), shards

    def open(self, shard: Shard, soon: Sequence[Shard] = ()) -> BinaryIO:
        try:
            return (self.root / shard.name).open("rb")
        except OSError as error:
            raise ConfigError(f"dataset.path: the shard {self.root / shard.name} can't be opened ({error})") from error


@dataclass(frozen=True)
class Repository:
    """Shards in a data set's repository of the Hub. Of them `keep` are on the disk at most, for all processes here.

    A shard that has to make room is the one that was not used for longest; whoever reads in it goes on undisturbed.
    """

    path: str
    commit: str
    folder: Path
    keep: int
    pauses: Sequence[float] = PAUSES  # seconds, before each further attempt

    @classmethod
    def find(cls, path: str, revision: str | None, folder: Path, keep: int) -> tuple["Repository", list[Shard]]:
        """The repository as it is now, and all its shards by name; folder: for the shards that are here."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile
        from huggingface_hub.utils import httpx

        if not is_repository(path):
            raise ConfigError(
                f"dataset.path={path} is no repository of the Hub (OWNER/NAME); for shards on this machine, use "
                "dataset=webdataset"
            )
        check_reachable("dataset.path", path, "dataset")
        try:
            commit = HfApi().dataset_info(path, revision=revision).sha
            tree = list(HfApi().list_repo_tree(path, recursive=True, revision=commit, repo_type="dataset"))
        except (httpx.HTTPError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"dataset.path={path} can't be read ({reason(error)}); give the id of a data set that can be reached, "
                "and dataset.revision=null or one that it has"
            ) from error
        shards = []
        for file in sorted((entry for entry in tree if isinstance(entry, RepoFile)), key=lambda file: file.path):
            if PurePosixPath(file.path).suffix in FORMATS:
                content = file.lfs.sha256 if file.lfs else file.blob_id
                shards.append(Shard(file.path, content, content))
        return cls(path, commit, folder / re.sub(r"[^\w.-]", "--", path), keep), shards

    def open(self, shard: Shard, soon: Sequence[Shard] = ()) -> BinaryIO:
        """Fetches it if it is not here; ConfigError if that can't be done, with all attempts."""
        try:
            return self._here(shard)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):  # one at a time, or there would be more than `keep`
            try:
                return self._here(shard)  # another process was faster
            except FileNotFoundError:
                self._make_room({self._file(each) for each in soon})
                self._fetch(shard)
                return self._here(shard)

    def _here(self, shard: Shard) -> BinaryIO:
        file = self._file(shard)
        opened = file.open("rb")
        os.utime(opened.fileno())  # used now, which is what removal goes by; by number, for the name may be gone
        return opened

    def _file(self, shard: Shard) -> Path:
        key = hashlib.sha256(repr(shard).encode()).hexdigest()[:32]
        return self.folder / f"{key}{PurePosixPath(shard.name).suffix}"

    def _make_room(self, soon: set[Path]) -> None:
        """Room for one more: first of what is not needed soon, then of the rest, what was used longest ago goes."""
        here = [file for file in self.folder.iterdir() if file.suffix in FORMATS]
        here.sort(key=lambda file: (file in soon, file.stat().st_mtime_ns))
        for file in here[: max(0, len(here) + 1 - self.keep)]:
            file.unlink()

    def _fetch(self, shard: Shard) -> None:
        from huggingface_hub.utils import httpx

        for pause in (*self.pauses, None):
            try:
                self._download(shard)
                return
            except (httpx.HTTPError, OSError, RuntimeError) as error:
                if pause is None or is_final(error):
                    raise ConfigError(
                        f"dataset.path={self.path}: {shard.name} can't be fetched ({reason(error)}); when it can be, "
                        "the same command with the same run=NAME goes on from the last checkpoint"
                    ) from error
                log.warning("fetching %s failed (%s); once more in %g s", shard.name, reason(error), pause)
                time.sleep(pause)

    def _download(self, shard: Shard) -> None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import disable_progress_bars

        incoming = self.folder / "incoming"
        shutil.rmtree(incoming, ignore_errors=True)  # what a killed process left
        disable_progress_bars()
        log.info("fetching %s", shard.name)
        file = hf_hub_download(self.path, shard.name, repo_type="dataset", revision=self.commit, local_dir=incoming)
        os.replace(file, self._file(shard))
        shutil.rmtree(incoming, ignore_errors=True)


def matching(shards: list[Shard], pattern: str | None) -> list[Shard]:
    """Those whose name fits; in a pattern * stands for any text, slashes included."""
    return [shard for shard in shards if pattern is not None and fnmatch(shard.name, pattern)]
