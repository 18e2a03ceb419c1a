"""Several folders or Hub data sets in one run: own images and others, each with its part of every batch."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, get_type_hints

from t2i.config import ConfigError, check_positive
from t2i.data.datasets import CachedSettings, loader_of
from t2i.data.emphasis import MaskSettings
from t2i.data.hub_dataset import HubDataset
from t2i.data.image_folder import Folder
from t2i.data.preparation import ImageSettings
from t2i.data.records import Found, Item

log = logging.getLogger(__name__)
KINDS = {"folder": Folder, "hub": HubDataset}
SMALLEST_PART = 1e-3  # of a batch
# What all sources have in common: how images are prepared and held out, and what the command line alone may permit.
COMMON = {entry.name for entry in fields(ImageSettings)} | {
    *("validation_share", "min_validation_samples", "folds", "fold", "max_train_samples", "on_error", "follow_links"),
    *("mask_background", "mask_normalize"),
}

OWN = ("repeats", "weight", "loss_weight", "hold_out")
CLASS_KEYS = ("class_prompt", "class_images", "class_folder")
NOT_OF_A_DATA_SET = ("dataset", *OWN, *CLASS_KEYS)
HUB_DEFAULTS = {"name": None, "revision": None, "split": "train", "image_column": "image"}


@dataclass(frozen=True)
class ClassRequest:
    """Images of a class that a source consists of, as DreamBooth's prior preservation needs (Ruiz et al. 2022)."""

    prompt: str
    number: int  # of images
    folder: str | None  # where those are that the base has made; None: not made yet


def class_request(name: str, source: Mapping[str, Any]) -> ClassRequest | None:
    """What a source says of images that the base makes; None if it wants none."""
    prompt, number = source.get("class_prompt"), source.get("class_images", 100)
    if prompt is None:
        if extra := [key for key in CLASS_KEYS if source.get(key) is not None]:
            raise ConfigError(f"{name}.{extra[0]} needs a class_prompt, such as 'photo of a dog'")
        return None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f"{name}.class_prompt={prompt} must be a text, such as 'photo of a dog'")
    check_positive(f"{name}.class_images", number, "100 to 200 are common")
    return ClassRequest(prompt, int(number), source.get("class_folder"))


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of several sources. Its images are those of `parts`, in this order."""

    name: str  # in messages
    request: ClassRequest | None = None  # of images that the base makes
    parts: Sequence[CachedSettings]
    repeats: float | None = None  # how often each image is used in an epoch
    weight: float | None = None  # its part of the batches, next to the weights of the others
    loss_weight: float = 1.0  # of its images, next to their own
    hold_out: bool = True  # whether some of its images may be held out
    most: int | None = None  # images

    def __post_init__(self):
        for key in ("repeats", "weight"):
            if getattr(self, key) is not None:
                check_positive(f"{self.name}.{key}", getattr(self, key), "leave out a source that is not wanted")
        if not (isinstance(self.loss_weight, int | float) and self.loss_weight >= 0):
            raise ConfigError(
                f"{self.name}.loss_weight={self.loss_weight} must be a number, at least 0; 1 is the default"
            )

    def find(self, number: int) -> Found:
        """Its images, as those of the source with this number."""
        if self.request is not None and self.request.folder is None:
            raise ConfigError(f"{self.name}.class_prompt: its images are made by `t2i encode`, or when a run begins")
        parts = [(part, part.find()) for part in self.parts]
        found = [(part, item) for part, its in parts for item in its.items]
        items = [
            replace(
                item,
                name=f"{part.path}: {item.name}",
                source=number,
                loss_weight=self._weighed(item.loss_weight),
                may_be_held_out=self.hold_out,
            )
            for part, item in found[: self.most]
        ]
        unread = [each | {"item": f"{part.path}: {each['item']}"} for part, its in parts for each in its.unread]
        return Found(items, unread)

    def _weighed(self, weight: Any) -> Any:
        return weight * self.loss_weight if isinstance(weight, int | float) else weight


@dataclass(frozen=True, kw_only=True)
class Sources(Folder):
    """Several sources, a list or by names. Settings that a source does not have are those of the data set."""

    path: str = ""
    sources: Any = field(default_factory=list)

    def __post_init__(self):
        if self.path:
            raise ConfigError(f"dataset.path={self.path}: with dataset=sources, each source has a path of its own")
        if not isinstance(self.sources, Mapping | Sequence) or isinstance(self.sources, str) or not self.sources:
            raise ConfigError(
                f"dataset.sources={self.sources} must be a list of sources, such as [{{path: mine, repeats: 10}}, "
                "{path: others}], or name each: {mine: {path: mine}}"
            )
        super().__post_init__()
        if len({source.weight is None for source in self._parsed}) > 1 or any(
            source.weight is not None and source.repeats is not None for source in self._parsed
        ):
            raise ConfigError(
                "dataset.sources: weight is a part of the batches and repeats counts uses of an image; give weight to "
                "all sources, or to none"
            )

    @cached_property
    def _parsed(self) -> list[Source]:
        named = self.sources.items() if isinstance(self.sources, Mapping) else enumerate(self.sources)
        return [self._source(f"dataset.sources.{name}", settings) for name, settings in named]

    def _source(self, name: str, given: Any) -> Source:
        if not isinstance(given, Mapping):
            raise ConfigError(f"{name}={given} must be settings, such as {{path: {given}}}")
        request = class_request(name, given)
        kind = KINDS.get(str(given.get("dataset", "folder")))
        if kind is None:
            raise ConfigError(f"{name}.dataset={given['dataset']} is not known; choose from {', '.join(KINDS)}")
        _check_keys(name, given, kind)
        common = {entry.name: getattr(self, entry.name) for entry in fields(kind) if hasattr(self, entry.name)}
        caption = {} if request is None else {"caption": request.prompt}
        its = {key: value for key, value in given.items() if key not in NOT_OF_A_DATA_SET}
        settings: dict[str, Any] = {**(HUB_DEFAULTS if kind is HubDataset else {}), **common, **caption, **its}
        parts: list[CachedSettings] = [kind(**settings)] if "path" in given else []
        own: dict[str, Any] = {key: value for key, value in given.items() if key in OWN}
        if request is not None:
            made: dict[str, Any] = {**settings, "path": request.folder or "", "split_folders": False, "masks": None}
            parts.append(Folder(**made))
            own = {"hold_out": False, "most": request.number, "request": request, **own}
        elif not parts:
            raise ConfigError(f"{name} has no path; name a folder of images, or a class_prompt whose images are made")
        return Source(name=name, parts=parts, **own)

    @property
    def where(self) -> str:
        return "dataset.sources"

    def find(self) -> Found:
        found = [source.find(number) for number, source in enumerate(self._parsed)]
        return Found([item for each in found for item in each.items], [file for each in found for file in each.unread])

    def texts_of(self, item: Item) -> tuple[str, ...]:
        return self._parsed[item.source].parts[0].texts_of(item)

    def _mask_settings(self) -> MaskSettings | None:
        settings = MaskSettings(self.mask_background, self.mask_normalize)
        return settings if any(part.masks for source in self._parsed for part in source.parts) else None

    def trained(self, train: Sequence[Item], held_out: Sequence[Item]) -> list[Item]:
        """Without copies of held-out images that other sources have, and with the uses of each image in an epoch."""
        out = {item.facts.sha256 for item in held_out}
        kept = [item for item in train if item.facts.sha256 not in out]
        if copies := len(train) - len(kept):
            log.warning("%d images are left out: another source has the same image, and it is held out there", copies)
        numbers = Counter(item.source for item in kept)
        if empty := [source.name for number, source in enumerate(self._parsed) if not numbers[number]]:
            raise ConfigError(
                f"{', '.join(empty)}: no image is left to train on; hold out fewer, or leave the source out"
            )
        uses = self._uses(numbers)
        self._tell(numbers, uses)
        return [replace(item, uses=uses[item.source]) for item in kept]

    def _uses(self, numbers: Mapping[int, int]) -> dict[int, float]:
        """How often the images of each source are used in an epoch; with weights, no image more than once."""
        weights = {number: source.weight for number, source in enumerate(self._parsed)}
        if None in weights.values():
            return {number: source.repeats or 1.0 for number, source in enumerate(self._parsed)}
        ratios = {number: float(weight or 0) / numbers[number] for number, weight in weights.items()}
        return {number: ratio / max(ratios.values()) for number, ratio in ratios.items()}

    def _tell(self, numbers: Mapping[int, int], uses: Mapping[int, float]) -> None:
        totals = {number: uses[number] * numbers[number] for number in uses}
        for number, source in enumerate(self._parsed):
            part = totals[number] / sum(totals.values())
            if part < SMALLEST_PART:
                raise ConfigError(
                    f"{source.name}: its {numbers[number]} images are {part:.2%} of the batches; give it more weight "
                    "or repeats, or leave it out"
                )
            counts = "" if source.loss_weight == 1 else f", loss weight {source.loss_weight:g}"
            log.info("%s: %d images, %.1f %% of each batch%s", source.name, numbers[number], 100 * part, counts)


sources = loader_of(Sources)


def _check_keys(name: str, given: Mapping[str, Any], kind: type) -> None:
    known = {entry.name for entry in fields(kind)} - COMMON - {"sources"}
    for key in given.keys() - known - {*NOT_OF_A_DATA_SET}:
        remedy = ", ".join(sorted({*known, *NOT_OF_A_DATA_SET} - {"class_folder"}))
        if key in COMMON:
            remedy = f"dataset.{key}, which holds for all sources"
        raise ConfigError(f"{name}.{key} is not a setting of a source; use {remedy}")
    for key, expected in get_type_hints(kind).items():
        value = given.get(key)
        if key in given and not (isinstance(value, expected) and isinstance(value, bool) == (expected is bool)):
            wanted = {bool: "true or false", int: "a whole number"}.get(expected, "a text; put it in quotes")
            raise ConfigError(f"{name}.{key}={value} must be {wanted}")
