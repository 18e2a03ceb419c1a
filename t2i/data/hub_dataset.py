"""Data sets of the Hugging Face Hub, and folders in a format that `datasets.load_dataset` reads."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

import datasets.config
import pyarrow as pa
from huggingface_hub.constants import HF_HUB_CACHE

from t2i.config import ConfigError
from t2i.data.cache_files import warn_of_damage
from t2i.data.datasets import CachedSettings, loader_of
from t2i.data.folder_files import is_below, outside_problem, warn_of
from t2i.data.hub_files import refuse_formats, refuse_schemes, stated
from t2i.data.images import SUFFIXES, VERSION, Facts, examine, examine_file, unusable
from t2i.data.records import Item
from t2i.data.splits import Captioned
from t2i.hub import check_reachable

FACTS = datasets.Features(
    {
        "sha256": datasets.Value("string"),
        "width": datasets.Value("int64"),
        "height": datasets.Value("int64"),
        "problem": datasets.Value("string"),
    }
)


@dataclass(frozen=True, kw_only=True)
class HubDataset(CachedSettings):
    """A data set of the Hub, or a folder of Parquet files, tar shards or an imagefolder.

    Held out is the data set's own validation split; if it has none, the hash of each image decides.
    """

    name: str | None
    revision: str | None
    split: str
    image_column: str
    caption_column: str

    def load(self) -> Captioned:
        check_reachable("dataset.path", self.path, "dataset")
        splits = self._splits()
        for key, column in (("image_column", self.image_column), ("caption_column", self.caption_column)):
            columns = splits[self.split].column_names
            if column not in columns:
                raise ConfigError(f"dataset.{key}={column} is not in {self.path}; its columns are {', '.join(columns)}")
        items = self._items(splits, self.split)
        if "validation" in splits and self.split != "validation":
            items += self._items(splits, "validation", for_validation=True)
        return self.captioned(items)

    def _splits(self) -> dict[str, datasets.Dataset]:
        refuse_formats(self.path)
        try:
            refuse_schemes(stated(self.path, self.revision), self.path)  # before `datasets` looks there
            builder = datasets.load_dataset_builder(self.path, self.name, revision=self.revision)
            self._refuse_outside(builder.config.data_files)
            loaded = _prepared(builder)
        except ConfigError:
            raise
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            cache = datasets.config.HF_DATASETS_CACHE
            raise ConfigError(
                f"dataset.path={self.path} can't be loaded: a file of the `datasets` cache in {cache} is damaged "
                f"({error}); delete its folder of this data set"
            ) from error
        except MemoryError:
            raise
        except Exception as error:
            # There is no such data set, no network, no data in the folder, or no such configuration; and the YAML of a
            # README.md can make its parser raise anything.
            raise ConfigError(
                f"dataset.path={self.path} can't be loaded ({error}); give the id of an accessible data set or a folder"
            ) from error
        splits = {str(split): rows for split, rows in loaded.items()}
        if self.split not in splits:
            raise ConfigError(f"dataset.split={self.split} is not in {self.path}; its splits are {', '.join(splits)}")
        return splits

    def _refuse_outside(self, data_files: Mapping[str, Sequence[str]] | None) -> None:
        """Refuse files on this machine that links, or the settings in README.md, name outside the data set.

        Images are left to `_examined`, so that they can be skipped.
        """
        names = [file for files in (data_files or {}).values() for file in files]
        refuse_schemes(names, self.path)
        local = [name.removeprefix("file://") for name in names if not name.startswith("hf://")]
        outside = [name for name in local if not is_below(name, self._trusted())]
        if self.follow_links:
            warn_of(outside, self.path)
            return
        for name in outside:
            if Path(name).suffix.lower() not in SUFFIXES:
                raise ConfigError(f"dataset.path={self.path}: {name} {outside_problem(name)}")

    def _items(self, splits: dict[str, datasets.Dataset], split: str, for_validation: bool = False) -> list[Item]:
        """The rows of a split as items. The facts of their images are cached by `datasets`."""
        try:
            rows = splits[split].cast_column(self.image_column, datasets.Image(decode=False))
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise ConfigError(
                f"dataset.image_column={self.image_column} of {self.path} contains no images ({error})"
            ) from error
        examined = partial(
            rows.map,
            _examined,
            input_columns=[self.image_column],
            remove_columns=rows.column_names,
            features=FACTS,
            fn_kwargs={"trusted": None if self.follow_links else self._trusted(), "version": VERSION},
            desc=f"scanning the images of {split}",
        )
        facts, damage = None, "it has other rows"
        try:
            facts = examined()
        except pa.ArrowException as error:
            damage = str(error).partition("\n")[0]
        if facts is None or len(facts) != len(rows) or facts.column_names != list(FACTS):
            warn_of_damage(Path(datasets.config.HF_DATASETS_CACHE), damage)
            facts = examined(load_from_cache_file=False)
        return [
            Item(
                name=f"{split}, row {row}",
                caption=caption,
                content=partial(_bytes, rows, row, self.image_column),
                facts=Facts(**facts_of_row),
                for_validation=for_validation,
            )
            for row, (caption, facts_of_row) in enumerate(zip(rows[self.caption_column], facts, strict=True))
        ]

    def _trusted(self) -> list[str]:
        """The folders whose files a row may name instead of containing an image: the data set's, and the caches."""
        folders = [self.path, str(datasets.config.HF_DATASETS_CACHE), HF_HUB_CACHE]
        return [os.path.realpath(folder) for folder in folders]


hub = loader_of(HubDataset)


def _bytes(rows: datasets.Dataset, row: int, column: str) -> bytes:
    return _content(rows[row][column])


def _content(image: dict) -> bytes:
    return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]


def _prepared(builder: datasets.DatasetBuilder) -> datasets.DatasetDict:
    """The splits of a data set, from the cache of `datasets` if they are there."""
    builder.download_and_prepare()
    try:
        return cast(datasets.DatasetDict, builder.as_dataset())
    except (pa.ArrowException, OSError) as error:
        warn_of_damage(Path(builder.cache_dir), str(error).partition("\n")[0])
        builder.download_and_prepare(download_mode=datasets.DownloadMode.REUSE_CACHE_IF_EXISTS)
        return cast(datasets.DatasetDict, builder.as_dataset())


def _examined(image: dict | None, trusted: list[str] | None, version: str) -> dict:
    """The facts of a row's image. A file that the row names is read only if it is in a trusted folder (None: in any).

    `version` is not used here: it is part of the key under which `datasets` caches the facts.
    """
    if image is None or (image["bytes"] is None and not image["path"]):
        return asdict(unusable("has no image"))
    if image["bytes"] is None:
        file = os.path.abspath(image["path"])
        if trusted is not None and not is_below(file, trusted):
            return asdict(unusable(f"points outside the data set, to {image['path']}; see dataset.follow_links"))
        if not os.path.isfile(file):
            return asdict(unusable(f"names {image['path']}, which does not exist"))
        return asdict(examine_file(Path(file)))
    return asdict(examine(image["bytes"]))
