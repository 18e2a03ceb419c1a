"""A data set before training: what is in it, how long its captions are, and which images are there twice."""

import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from omegaconf import DictConfig
from PIL import Image

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.data.images import BadImage, read_small
from t2i.inspection.entries import HELD_OUT, LEFT_OUT, TRAIN, Entry, find_entries
from t2i.inspection.near_duplicates import MOST_PAIRS, Look, groups, look, near
from t2i.models.shapes import shapes_only
from t2i.models.tokens import lengths
from t2i.runs.text import one_line

SMALL = 128  # pixels of an image that is looked at
THUMBNAIL = 96  # pixels
QUALITY = 60  # of thumbnails
Progress = Callable[[Iterable, int, str], Iterable]  # iterates over some things, of which there are so many


@dataclass(frozen=True)
class Alike:
    """Two entries that look alike."""

    first: Entry
    second: Entry
    bits: int  # of 64 that differ between their hashes
    mirrored: bool


@dataclass
class Survey:
    """What is known of a data set."""

    path: str
    command: str  # that trains on it
    model: str
    resolution: int
    entries: list[Entry]
    notes: list[str]
    refusal: str = ""  # why training would not begin
    limit: int | None = None  # tokens at which the model cuts captions; None: its tokenizer is not here
    duplicates: list[list[Entry]] = field(default_factory=list)  # files with the same bytes
    alike: list[Alike] = field(default_factory=list)
    battery: int = 0  # held-out images that a validation measures, at most

    def of(self, side: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.side == side]

    @property
    def used(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.side != LEFT_OUT]

    def cut_off(self, entry: Entry) -> bool:
        """Whether one of its captions is longer than the model reads."""
        return self.limit is not None and any(tokens > self.limit for tokens in entry.tokens)

    @property
    def leaks(self) -> list[Alike]:
        """Held-out images that are in the training set as well, or nearly; the held-out one comes first."""
        found = []
        for group in self.duplicates:
            trained = [entry for entry in group if entry.side == TRAIN][:1]
            found += [Alike(entry, twin, 0, False) for entry in group if entry.side == HELD_OUT for twin in trained]
        for pair in self.alike:
            sides = {pair.first.side: pair.first, pair.second.side: pair.second}
            if sides.keys() == {HELD_OUT, TRAIN}:
                found.append(Alike(sides[HELD_OUT], sides[TRAIN], pair.bits, pair.mirrored))
        return found

    @property
    def near_groups(self) -> list[list[Entry]]:
        """Images that look alike, directly or through others, the largest groups first."""
        places = {id(entry): place for place, entry in enumerate(self.entries)}
        pairs = [(places[id(pair.first)], places[id(pair.second)]) for pair in self.alike]
        return [[self.entries[place] for place in group] for group in groups(pairs)]


def _quietly(things: Iterable, total: int, what: str) -> Iterable:
    return things


def survey(cfg: DictConfig, command: str, progress: Progress = _quietly) -> Survey:
    """Everything that can be known of the data set of a configuration without a network. Encodes nothing.

    Raises ConfigError if the data set can't be read at all.
    """
    found = find_entries(cfg)
    made = Survey(
        path=str(cfg.dataset.get("path", "")) or command,
        command=command,
        model=str(cfg.model.get("path", "")),
        resolution=cfg.dataset.get("resolution") or 0,
        entries=found.entries,
        notes=found.notes,
        refusal=found.refusal,
        battery=cfg.validation.get("items") or 0,
    )
    made.limit, note = count_tokens(cfg, made.entries)
    made.notes += [note] if note else []
    made.duplicates = exact_duplicates(made.used)
    made.alike = look_at(made.entries, progress)
    if len(made.alike) >= MOST_PAIRS:
        made.notes.append(f"There are more than {MOST_PAIRS:,} pairs of near duplicates; the others are left out.")
    return made


def count_tokens(cfg: DictConfig, entries: Sequence[Entry]) -> tuple[int | None, str]:
    """Note the tokens of all captions; returns the number at which the model cuts them, or None and why not."""
    try:
        with shapes_only():
            tokenizer, limit = build(cfg, "model").limit
    except (ConfigError, OSError) as error:
        return None, f"Tokens are not counted: {one_line(error)}"
    captions = list(dict.fromkeys(caption for entry in entries for caption in entry.captions))
    numbers = dict(zip(captions, lengths(tokenizer, captions), strict=True))
    for entry in entries:
        entry.tokens = tuple(numbers[caption] for caption in entry.captions)
    return limit, ""


def exact_duplicates(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries whose files have the same bytes, the largest groups first."""
    by_hash = defaultdict(list)
    for entry in entries:
        if entry.facts.sha256:
            by_hash[entry.facts.sha256].append(entry)
    return sorted((group for group in by_hash.values() if len(group) > 1), key=lambda group: -len(group))


def look_at(entries: Sequence[Entry], progress: Progress) -> list[Alike]:
    """Note a thumbnail and the format of every image that can be read; returns those that are used and look alike."""
    seen = [entry for entry in entries if entry.content or entry.pixels]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(progress(threads.map(_look_at, seen), len(seen), "looking at images"))
    first_of = dict[str, Entry]()  # of files with the same bytes one is compared with the others
    compared: list[tuple[Entry, Look]] = []
    for entry, each in zip(seen, found, strict=True):
        if each is not None and entry.side != LEFT_OUT:
            key = entry.facts.sha256 or str(id(entry))
            if first_of.setdefault(f"{entry.side} {key}", entry) is entry:
                compared.append((entry, each))
    pairs = near([each for _, each in compared], lambda blocks: progress(blocks, len(blocks), "comparing images"))
    alike = [Alike(compared[pair.first][0], compared[pair.second][0], pair.bits, pair.mirrored) for pair in pairs]
    return [pair for pair in alike if pair.first.facts.sha256 == "" or pair.first.facts != pair.second.facts]


def _look_at(entry: Entry) -> Look | None:
    try:
        image = _small(entry)
    except (BadImage, OSError):  # an image that is left out for that, or that has gone since
        return None
    seen = look(image)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file := io.BytesIO(), "webp", quality=QUALITY, method=2)
    entry.thumbnail = file.getvalue()
    return seen


def _small(entry: Entry) -> Image.Image:
    if entry.pixels is not None:
        image = Image.fromarray(entry.pixels())
        image.thumbnail((SMALL, SMALL))
        return image
    assert entry.content is not None
    image, entry.kind = read_small(entry.content(), SMALL)
    return image
