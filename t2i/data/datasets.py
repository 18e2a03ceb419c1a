"""What data sets share: how a `_target_` loads them, and how their images are divided, held out and prepared."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol

import numpy as np

from t2i.config import ConfigError, check_positive
from t2i.data.cached_split import CachedSplit
from t2i.data.caption_texts import CaptionTexts
from t2i.data.emphasis import Masks, MaskSettings
from t2i.data.held_out import Fold, by_fold, by_hash
from t2i.data.images import VERSION
from t2i.data.preparation import ImageSettings, Preparation
from t2i.data.records import Found, Item, check_policy, usable
from t2i.data.splits import Captioned


class Settings(Protocol):
    """The settings of a data set, checked when they are made; nothing is read before `load`."""

    def load(self) -> Captioned: ...


def loader_of(settings: Callable[..., Settings]) -> Callable[..., Captioned]:
    """The function that a `_target_` names: it takes the fields of a dataclass as keywords and returns the data set.

    So conf/dataset/ stays flat, and the signature, which is that of the dataclass, refuses unknown settings.
    """

    @wraps(settings, updated=())
    def load(**values: Any) -> Captioned:
        return settings(**values).load()

    load.__dict__["settings"] = settings
    return load


@dataclass(frozen=True)
class Divided:
    """The items of a data set by what becomes of them."""

    train: list[Item]
    held_out: list[Item]
    surplus: list[Item]  # would be trained on but for dataset.max_train_samples
    skipped: list[dict[str, str]]  # could not be used: `item` and `reason`
    fold: Fold | None = None


@dataclass(frozen=True, kw_only=True)
class CachedSettings(ImageSettings):
    """The settings that folder.yaml and hub.yaml of conf/dataset/ have in common."""

    path: str
    validation_share: float | None  # None: no image is held out by its hash
    max_train_samples: int | None
    on_error: str
    # Run folders that were written before do not have these.
    follow_links: bool = False
    min_validation_samples: int = 0
    folds: int | None = None
    fold: int | None = None
    caption: str | None = None  # of every image
    caption_template: str | None = None
    shuffle_tags: bool = False
    keep_tags: int = 1
    tag_variants: int = 8
    loss_weight_column: str | None = None
    masks: str | None = None
    mask_background: float = 0.0
    mask_normalize: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.validation_share is not None and not 0 <= self.validation_share < 1:
            raise ConfigError(
                f"dataset.validation_share={self.validation_share} must be a fraction of the images, between 0 and 1; "
                "0 holds out none"
            )
        if self.caption is not None and not (isinstance(self.caption, str) and self.caption.strip()):
            raise ConfigError(f"dataset.caption={self.caption} must be a text; null for the captions of the data set")
        if not isinstance(self.min_validation_samples, int) or self.min_validation_samples < 0:
            raise ConfigError(
                f"dataset.min_validation_samples={self.min_validation_samples} must be a whole number, at least 0"
            )
        if self.max_train_samples is not None:
            check_positive("dataset.max_train_samples", self.max_train_samples, "use null for all images")
        check_policy(self.on_error)
        self._mask_settings(), self._texts()  # check theirs

    def _texts(self) -> CaptionTexts:
        return CaptionTexts(self.caption_template, self.shuffle_tags, self.keep_tags, self.tag_variants)

    def _mask_settings(self) -> MaskSettings | None:
        settings = MaskSettings(self.mask_background, self.mask_normalize)
        return None if self.masks is None else settings

    @property
    def where(self) -> str:
        """The setting that names the data set, in messages."""
        return f"dataset.path={self.path}"

    def find(self) -> Found:
        """What the data set holds, usable or not."""
        raise NotImplementedError

    def load(self) -> Captioned:
        return self.captioned(self.find().items)

    def divide(self, items: Sequence[Item]) -> Divided:
        """The items in the order of their hashes, by what becomes of them.

        The items that are marked for validation are held out. If there are none, the hashes of the images decide; with
        `folds`, they do in any case.
        """
        good, skipped = usable(items, self.where, self.on_error)
        eligible = [item for item in good if item.may_be_held_out]
        is_held_out, fold = self._choose_held_out(eligible)
        held_out = [item for item, out in zip(eligible, is_held_out, strict=True) if out]
        chosen = {id(item) for item in held_out}
        train = [item for item in good if id(item) not in chosen]
        most = len(train) if self.max_train_samples is None else self.max_train_samples
        return Divided(self.trained(train[:most], held_out), held_out, train[most:], skipped, fold)

    def captioned(self, items: Sequence[Item]) -> Captioned:
        """The items as a data set; held-out images have one view and one caption."""
        if not items:
            raise ConfigError(f"{self.where} contains no images with captions")
        divided = self.divide(items)
        train, held_out = divided.train, divided.held_out
        good = [*train, *divided.surplus, *held_out]
        eligible = [item for item in good if item.may_be_held_out]
        if not good:
            first = divided.skipped[0]
            raise ConfigError(
                f"{self.where}: none of the {len(items)} images can be used; the first: {first['item']} "
                f"{first['reason']}"
            )
        if not train:
            raise ConfigError(
                f"{self.where}: none of the {len(good)} images is trained on; hold out fewer "
                "(dataset.validation_share, dataset.min_validation_samples)"
            )
        if not held_out and self.validation_share and not self._too_few(eligible):
            raise ConfigError(
                f"{self.where}: none of the {len(good)} images is held out; use a larger "
                "dataset.validation_share or dataset.min_validation_samples, or 0 as validation_share to hold out none"
            )
        preparation, masks = Preparation(self), self._mask_settings()
        return Captioned(
            prepared(train, [self.texts_of(item) for item in train], preparation, masks),
            prepared(held_out, [self.texts_of(item)[:1] for item in held_out], preparation.plain(), masks),
            divided.skipped,
            divided.fold,
            self._why_none(eligible),
        )

    def trained(self, train: Sequence[Item], held_out: Sequence[Item]) -> list[Item]:
        """The items to train on, as they are used in an epoch."""
        return list(train)

    def texts_of(self, item: Item) -> tuple[str, ...]:
        """The captions that an image is trained with."""
        return self._texts().of(item.captions)

    def _too_few(self, items: Sequence[Item]) -> bool:
        """Whether there is at most one image, perhaps in copies, so that none can be held out."""
        return len({item.facts.sha256 for item in items}) <= 1

    def _why_none(self, items: Sequence[Item]) -> str:
        """Why no image is held out although none of the settings for that is null; empty if there is no reason."""
        if self.validation_share == 0:
            return "dataset.validation_share=0"
        if not items:
            return "hold_out=false for all sources"
        return "there is only one image" if self.validation_share and self._too_few(items) else ""

    def _choose_held_out(self, items: Sequence[Item]) -> tuple[list[bool], Fold | None]:
        """Whether each of the usable items is held out; and the fold, if they are divided into folds."""
        facts, are_marked = [item.facts for item in items], any(item.for_validation for item in items)
        if self.folds is not None and are_marked:
            raise ConfigError(
                f"validation.folds={self.folds}: {self.path} has validation images of its own; use null, or put them "
                "next to the others"
            )
        if self.folds is not None:
            return by_fold(facts, [item.captions for item in items], self.folds, self.fold or 0)
        if are_marked or self.validation_share is None:
            return [item.for_validation for item in items], None
        if self.validation_share == 0 or self._too_few(items):
            return [False] * len(items), None
        return by_hash(facts, self.validation_share, self.min_validation_samples), None


def prepared(
    items: Sequence[Item],
    captions: Sequence[tuple[str, ...]],
    preparation: Preparation,
    masks: MaskSettings | None = None,
) -> CachedSplit:
    """The split of usable items, with the captions that each may have. masks: None if there are none."""
    content = [(item.facts.sha256, texts) for item, texts in zip(items, captions, strict=True)]
    loss_weights = np.array([float(item.loss_weight) for item in items])
    is_weighted = bool((loss_weights != 1).any())
    emphasis: list[object] = [loss_weights.tolist()] if is_weighted else []
    if masks is not None:
        emphasis += [masks, [_mask_identity(item) for item in items]]
    return CachedSplit(
        captions=captions,
        pixels=lambda index, view=0: preparation.pixels(_content(items[index]), items[index].facts, view),
        weights=np.array([item.uses for item in items]),
        fingerprint=hashlib.sha256(repr((VERSION, preparation.effect(), content, *emphasis)).encode()).hexdigest(),
        views=preparation.views,
        framing=lambda index, view: preparation.framing(items[index].facts, view),
        identity=lambda index, view: repr((VERSION, preparation.identity(items[index].facts, view))),
        sources=np.array([item.source for item in items]),
        loss_weights=loss_weights if is_weighted else None,
        masks=None if masks is None else _masks(items, preparation, masks),
        items=items,
    )


def _masks(items: Sequence[Item], preparation: Preparation, settings: MaskSettings) -> Masks:
    return Masks(
        pixels=lambda index, view: preparation.mask(items[index].mask, items[index].facts, view),
        identity=lambda index, view: repr(
            (VERSION, _mask_identity(items[index]), preparation.identity(items[index].facts, view))
        ),
        settings=settings,
    )


def _mask_identity(item: Item) -> object:
    return item.mask and (item.mask.facts.sha256, item.mask.of_alpha)


def _content(item: Item) -> bytes:
    """The image's file. Raises ConfigError if it is not the one that was scanned, whose hash names its latents."""
    content = item.content()
    if hashlib.sha256(content).hexdigest() != item.facts.sha256:
        raise ConfigError(f"dataset: {item.name} has changed while it was in use; repeat the command")
    return content
