"""What is in a data set, as its loader finds it: every image and file, and what becomes of it."""

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import DictConfig

from t2i.config import ConfigError
from t2i.config.instantiate import MARKS, build, naming, resolve, target_of
from t2i.data.datasets import CachedSettings
from t2i.data.images import Facts
from t2i.data.preparation import ImageSettings, Preparation
from t2i.data.records import Found, Item
from t2i.data.sources import CLASS_KEYS, Sources, class_request
from t2i.data.splits import Captioned, Split
from t2i.data.streaming import Stream

TRAIN, HELD_OUT, LEFT_OUT = "train", "held out", "left out"
SAID_ELSEWHERE = {  # loggers whose messages the report makes superfluous
    f"t2i.data.{name}" for name in ("records", "scanned_files", "image_folder", "shard_index")
}
NO_FACTS = Facts("", 0, 0, "")


@dataclass(eq=False)
class Entry:
    """An image, or a file that is not read."""

    name: str
    side: str  # TRAIN, HELD_OUT or LEFT_OUT
    captions: tuple[str, ...] = ()
    source: str = ""  # of the captions
    reason: str = ""  # why it is left out, as the rest of a sentence that begins with its name
    facts: Facts = NO_FACTS
    content: Callable[[], bytes] | None = None  # the image's file; None if it is not looked at
    pixels: Callable[[], Any] | None = None  # or the image as it is trained on, [H, W, 3] uint8
    scale: float = 0.0  # by which the image is scaled to cover the size that is trained on; 0: unknown
    cut: float = 0.0  # share of its area that is cut off
    kind: str = ""  # the format of the file
    tokens: tuple[int, ...] = ()  # of each caption, with those that begin and end it
    thumbnail: bytes = b""  # WebP


@dataclass
class Entries:
    """All entries, and what is to be said of all of them."""

    entries: list[Entry]
    notes: list[str] = field(default_factory=list)  # what the loader says
    refusal: str = ""  # why training would not begin


def find_entries(cfg: DictConfig) -> Entries:
    """What the loader of `dataset` finds, also where training would stop. Raises ConfigError if it can't be read."""
    with _said_by_loader() as notes:
        settings, later = settings_of(cfg), list[str]()
        if isinstance(settings, Sources):
            settings, later = _without_class_images(settings)
        if isinstance(settings, CachedSettings):
            found = _cached(settings)
        else:
            data = build(cfg, "dataset")
            assert isinstance(data, Captioned)
            found = _streamed(data) if isinstance(data.train, Stream) else _drawn(data)
    found.notes = [*dict.fromkeys(notes), *found.notes, *later]
    if isinstance(settings, ImageSettings):
        _measure(found.entries, Preparation(settings).plain())
    return found


def settings_of(cfg: DictConfig) -> Any:
    """The settings of t2i's own data sets, checked; None for a data set that is a function of its own."""
    kind = getattr(target_of(cfg, "dataset"), "settings", None)
    if kind is None:
        return None
    with naming("dataset"):
        return kind(**{name: value for name, value in resolve(cfg.dataset).items() if name not in MARKS})


def _cached(settings: CachedSettings) -> Entries:
    found, refusal = settings.find(), ""
    try:
        settings.captioned(found.items)
    except ConfigError as error:
        refusal = str(error)
    skipping = replace(settings, on_error="skip")
    try:
        divided = skipping.divide(found.items)
        sides = {TRAIN: divided.train, HELD_OUT: divided.held_out}
        surplus = divided.surplus
    except ConfigError as error:  # such as folds of too few images
        refusal = refusal or str(error)
        sides, surplus = {TRAIN: [item for item in found.items if not item.problem]}, []
    entries = [
        _entry(item, side, texts=settings.texts_of(item)[: 1 if side == HELD_OUT else None])
        for side, items in sides.items()
        for item in items
    ]
    placed = {item.name for items in (*sides.values(), surplus) for item in items}
    copies = [item for item in found.items if not item.problem and item.name not in placed]
    entries += [_entry(item, LEFT_OUT, "is the same as a held-out image of another source") for item in copies]
    reason = f"is beyond the {settings.max_train_samples} images of dataset.max_train_samples"
    entries += [_entry(item, LEFT_OUT, reason) for item in surplus]
    entries += [_entry(item, LEFT_OUT, item.problem) for item in found.items if item.problem]
    return Entries(entries + _unread(found), refusal=refusal)


def _unread(found: Found) -> list[Entry]:
    return [Entry(each["item"], LEFT_OUT, reason=each["reason"]) for each in found.unread]


def _entry(item: Item, side: str, reason: str = "", texts: tuple[str, ...] | None = None) -> Entry:
    """texts: what the captions become in training."""
    captions = texts or (() if item.problem else item.captions)
    return Entry(item.name, side, captions, item.caption_source, reason, item.facts, item.content)


def _without_class_images(settings: Sources) -> tuple[Sources, list[str]]:
    """The sources without the images that the base draws before a run begins, and what is to be said of these."""
    given = settings.sources
    named = dict(given) if isinstance(given, Mapping) else {str(place): each for place, each in enumerate(given)}
    kept, notes = {}, []
    for name, source in named.items():
        request = class_request(f"dataset.sources.{name}", source) if isinstance(source, Mapping) else None
        if request is None or request.folder is not None:
            kept[name] = source
            continue
        notes.append(
            f"dataset.sources.{name}: up to {request.number} images of {request.prompt!r} are drawn by the base when a "
            "run begins, or by `t2i encode`; they are not counted here."
        )
        if "path" in source:
            kept[name] = {key: value for key, value in source.items() if key not in CLASS_KEYS}
    return (replace(settings, sources=kept) if notes and kept else settings), notes


def _streamed(data: Captioned) -> Entries:
    """What the indices of the shards say. Images are read only of held-out shards that have none yet."""
    stream = data.train
    assert isinstance(stream, Stream)
    index, entries = stream.index, []
    for shard in index.known():
        for number in range(index.count(shard)):
            captions, facts, _ = index.item(shard, number)
            entries.append(Entry(f"{index.shards[shard].name}: {number}", TRAIN, captions, facts=facts))
    held_out = [replace(_entry(item, HELD_OUT), content=None) for item in data.validation.items]
    left_out = [Entry(each["item"], LEFT_OUT, reason=each["reason"]) for each in data.skipped]
    known, number = len(index.known()), len(index.shards)
    notes = [
        "A stream is read while it is trained on. This is what the indices of its shards say: names, sizes, captions "
        "and exact duplicates. Its images were not looked at, so near duplicates and formats are unknown."
    ]
    if known < number:
        notes.append(
            f"{number - known} of the {number} shards that are trained on have no index yet, which training makes when "
            "it first reads them; their images are not counted here."
        )
    return Entries(entries + held_out + left_out, notes)


def _drawn(data: Captioned) -> Entries:
    """A data set without files: its images as they are trained on."""
    entries = [Entry(each["item"], LEFT_OUT, reason=each["reason"]) for each in data.skipped]
    for side, split in ((TRAIN, data.train), (HELD_OUT, data.validation)):
        if isinstance(split, Split):
            entries += [_drawn_entry(split, side, index) for index in range(len(split))]
    return Entries(entries, ["These images come from code, at the size that is trained on: they have no files."])


def _drawn_entry(split: Split, side: str, index: int) -> Entry:
    if split.items:
        return _entry(split.items[index], side)
    return Entry(f"{side}, {index}", side, split.captions[index], pixels=lambda: split.pixels(index, 0))


def _measure(entries: Iterable[Entry], preparation: Preparation) -> None:
    for entry in entries:
        if entry.facts.width:
            width, height = preparation.size(entry.facts)
            entry.scale = max(width / entry.facts.width, height / entry.facts.height)
            entry.cut = 1 - width * height / (entry.facts.width * entry.facts.height * entry.scale**2)


@contextmanager
def _said_by_loader() -> Generator[list[str]]:
    """Within, what the loaders log is kept instead of printed."""
    logger, said = logging.getLogger("t2i.data"), Kept()
    before = logger.propagate, logger.level
    logger.addHandler(said)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield said.messages
    finally:
        logger.removeHandler(said)
        logger.propagate, level = before
        logger.setLevel(level)


class Kept(logging.Handler):
    """Keeps the messages that the report does not make superfluous."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name not in SAID_ELSEWHERE:
            self.messages.append(record.getMessage())
