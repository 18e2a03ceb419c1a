"""Data sets of the Hugging Face Hub, and folders in a format that `datasets.load_dataset` reads."""

import json
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import datasets.config
import pyarrow as pa
from huggingface_hub.constants import HF_HUB_CACHE

from t2i.config import ConfigError
from t2i.data.cache_files import warn_of_damage
from t2i.data.datasets import CachedSettings, loader_of
from t2i.data.folder_files import is_below, outside_problem, warn_of
from t2i.data.hub_files import refuse_formats, refuse_schemes, stated
from t2i.data.image_values import content_of, shortened
from t2i.data.images import SUFFIXES, VERSION, BadImage, Facts, examine, examine_file, unusable
from t2i.data.local_folders import (
    facts_file,
    files_below,
    have_changed,
    in_no_split,
    is_saved,
    read_saved,
    tell_of_splits,
    without_pattern,
)
from t2i.data.masks import ALPHA, Mask
from t2i.data.metadata_files import as_number
from t2i.data.records import Found, Item
from t2i.hub import check_reachable

log = logging.getLogger(__name__)
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

    def __post_init__(self):
        super().__post_init__()
        if self.masks not in (None, ALPHA):
            raise ConfigError(f"dataset.masks={self.masks} is for dataset=folder; use {ALPHA} or null")

    def find(self) -> Found:
        if self.path.startswith("~"):
            return replace(self, path=str(Path(self.path).expanduser())).find()
        check_reachable("dataset.path", self.path, "dataset")
        splits = self._splits()
        rows = self._chosen(splits)
        for key in ("image_column", "caption_column", "loss_weight_column"):
            column, is_unused = getattr(self, key), key == "caption_column" and self.caption is not None
            if column is not None and column not in rows.column_names and not is_unused:
                present = ", ".join(rows.column_names)
                raise ConfigError(f"dataset.{key}={column} is not in {self.path}; its columns are {present}")
        items = self._items(rows, self.split)
        if "validation" in splits and self.split.partition("[")[0] != "validation":
            items += self._items(splits["validation"], "validation", for_validation=True)
        return Found(items)

    def _chosen(self, splits: dict[str, datasets.Dataset]) -> datasets.Dataset:
        """The rows of `split`, which may be a part of one, such as train[:50%], or several, as in train+test."""
        if self.split in splits:
            return splits[self.split]
        unknown = ConfigError(
            f"dataset.split={self.split} is not in {self.path}; its splits are {', '.join(splits)}, or parts of them "
            "such as 'train[:50%]'"
        )
        if self.split == "train" and len(splits) == 1:
            (only,) = splits
            log.warning("%s has no split train; its only split, %s, is trained on", self.path, only)
            return splits[only]
        try:
            parts = datasets.ReadInstruction.from_spec(self.split).to_absolute({k: len(v) for k, v in splits.items()})
        except (ValueError, AssertionError, KeyError) as error:
            raise unknown from error
        chosen = [splits[part.splitname].select(range(part.from_ or 0, part.to)) for part in parts]
        return datasets.concatenate_datasets(cast("list[datasets.Dataset]", chosen))

    def _splits(self) -> dict[str, datasets.Dataset]:
        refuse_formats(self.path)
        is_local = Path(self.path).is_dir()
        if is_local and is_saved(self.path):
            self._refuse_outside({"": [str(file) for file in files_below(self.path)]})
            return read_saved(self.path)
        try:
            refuse_schemes(stated(self.path, self.revision), self.path)  # before `datasets` looks there
            path = without_pattern(self.path) if is_local else self.path
            builder = datasets.load_dataset_builder(path, self.name, revision=self.revision)
            self._refuse_outside(builder.config.data_files)
            loaded = _prepared(builder, self.path if is_local else None)
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
        if is_local:
            self._tell_of_splits(path, builder.config.data_files or {}, splits)
        return splits

    def _tell_of_splits(self, folder: str, data_files: Mapping[str, Sequence[str]], splits: Collection[str]) -> None:
        data_files = {str(name): files for name, files in data_files.items()}
        if self.split == "train" and "train" not in splits and (rest := in_no_split(folder, data_files)):
            taken = ", ".join(os.path.relpath(file, folder) for files in data_files.values() for file in files[:1])
            raise ConfigError(
                f"dataset.path={self.path}: `datasets` takes {taken} for the split {', '.join(splits)} because of its "
                f"name, and leaves out {len(rest)} files, such as {rest[0]}; rename it, or use dataset=folder for a "
                "folder of images"
            )
        used = [name for name in (*re.findall(r"[\w.]+", self.split), "validation") if name in splits]
        tell_of_splits(folder, data_files, used or list(splits))

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

    def _items(self, rows: datasets.Dataset, split: str, for_validation: bool = False) -> list[Item]:
        """The rows of a split as items. The facts of their images are cached by `datasets`."""
        rows, folder = self._with_images(rows)
        settings: dict[str, Any] = {"trusted": None if self.follow_links else self._trusted(), "version": VERSION}
        settings |= {"folder": folder} if folder else {}
        examined = partial(
            rows.map,
            _examined,
            input_columns=[self.image_column],
            remove_columns=rows.column_names,
            features=FACTS,
            fn_kwargs=settings,
            cache_file_name=facts_file(self.path, rows, split, VERSION) if is_saved(self.path) else None,
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
        captions = [self.caption] * len(rows) if self.caption is not None else rows[self.caption_column]
        weights = [1.0] * len(rows) if self.loss_weight_column is None else rows[self.loss_weight_column]
        items = []
        for row, known in enumerate(_facts_in(cast(datasets.Dataset, facts))):
            if known.problem:  # now there may be what it needs
                known = _examined_again(rows, row, self.image_column, settings)
            content = partial(_bytes, rows, row, self.image_column, folder)
            item = Item(
                name=f"{split}, row {row}",
                caption=captions[row],
                content=content,
                facts=known,
                for_validation=for_validation,
                mask=Mask(content, known, of_alpha=True) if self.masks == ALPHA else None,
                loss_weight=as_number(weights[row]),
                caption_source=f"column {self.caption_column}" if self.caption is None else "dataset.caption",
            )
            items.append(item)
        return items

    def _with_images(self, rows: datasets.Dataset) -> tuple[datasets.Dataset, str]:
        """The rows with undecoded images; and for texts or lists instead of them, where their paths start from."""
        feature = rows.features[self.image_column]
        is_text = isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
        if is_text or isinstance(feature, (datasets.List, datasets.LargeList, datasets.Sequence)):
            return rows, os.path.realpath(self.path)
        try:
            return rows.cast_column(self.image_column, datasets.Image(decode=False)), ""
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise ConfigError(
                f"dataset.image_column={self.image_column} of {self.path} contains no images "
                f"({shortened(str(error))}); its columns are {', '.join(rows.column_names)}"
            ) from error

    def _trusted(self) -> list[str]:
        """The folders whose files a row may name instead of containing an image: the data set's, and the caches."""
        folders = [self.path, str(datasets.config.HF_DATASETS_CACHE), HF_HUB_CACHE]
        return [os.path.realpath(folder) for folder in folders]


hub = loader_of(HubDataset)


def _bytes(rows: datasets.Dataset, row: int, column: str, folder: str) -> bytes:
    content, path = content_of(rows[row][column], folder)
    return Path(path).read_bytes() if content is None else content


def _facts_in(rows: datasets.Dataset) -> list[Facts]:
    return [Facts(**row) for row in cast("list[dict[str, Any]]", rows.to_list())]


def _examined_again(rows: datasets.Dataset, row: int, column: str, settings: dict[str, Any]) -> Facts:
    return Facts(**_examined(rows[row][column], **settings))


def _prepared(builder: datasets.DatasetBuilder, folder: str | None) -> datasets.DatasetDict:
    """The splits of a data set, from the cache of `datasets` if they are there. folder: of a data set that is here."""
    anew = None
    if folder is not None and have_changed(folder, Path(builder.cache_dir)):
        log.info("files in %s have changed since they were last read; all are read again", folder)
        anew = datasets.DownloadMode.REUSE_CACHE_IF_EXISTS
    builder.download_and_prepare(download_mode=anew)
    try:
        return cast(datasets.DatasetDict, builder.as_dataset())
    except (pa.ArrowException, OSError) as error:
        warn_of_damage(Path(builder.cache_dir), str(error).partition("\n")[0])
        builder.download_and_prepare(download_mode=datasets.DownloadMode.REUSE_CACHE_IF_EXISTS)
        return cast(datasets.DatasetDict, builder.as_dataset())


def _examined(image: Any, trusted: list[str] | None, version: str, folder: str = "") -> dict:
    """The facts of a row's image. A file that the row names is read only if it is in a trusted folder (None: in any).

    `version` is not used here: it is part of the key under which `datasets` caches the facts.
    """
    try:
        content, file = content_of(image, folder)
    except BadImage as problem:
        return asdict(unusable(str(problem)))
    if content is not None:
        return asdict(examine(content))
    if trusted is not None and not is_below(file, trusted):
        return asdict(unusable(f"points outside the data set, to {shortened(file, 300)}; see dataset.follow_links"))
    if not os.path.isfile(file):
        return asdict(unusable(f"names {shortened(file, 300)}, which does not exist"))
    return asdict(examine_file(Path(file)))
