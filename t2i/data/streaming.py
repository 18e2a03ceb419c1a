"""Streams: data sets in shards that are read while training, and never lie on the disk or in the cache as a whole."""

import hashlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from t2i.config import ConfigError, check_positive
from t2i.data.batches import Batch, Draws
from t2i.data.datasets import prepared
from t2i.data.fingerprints import hash_of
from t2i.data.images import Preparation
from t2i.data.latent_cache import encode_pixels
from t2i.data.records import Item, check_policy
from t2i.data.samplers import StreamOrder
from t2i.data.shard_index import Catalogue
from t2i.data.shard_sources import Files, Repository, matching
from t2i.data.shards import Columns, Shard
from t2i.data.splits import Captioned, Split

log = logging.getLogger(__name__)
VERSION = "1"  # of what a stream makes of shards; part of the fingerprint


@dataclass(frozen=True)
class Stream:
    """Captioned images in shards, `at_hand` of which may be here at a time; for the rest see `Split`."""

    cached: ClassVar[bool] = False
    catalogue: Catalogue
    preparation: Preparation
    shuffle_shards: int
    at_hand: int
    ahead: "Ahead"

    @property
    def fingerprint(self) -> str:
        content = repr((VERSION, self.catalogue.fingerprint(), self.preparation.effect()))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def images(self) -> int | None:
        """How many, if every shard has been looked at before."""
        shards, known = self.catalogue.shards, self.catalogue.known()
        return sum(map(self.catalogue.count, known)) if len(known) == len(shards) else None

    def order(self, seed: int) -> StreamOrder:
        return StreamOrder(self.catalogue.count, len(self.catalogue.shards), self.shuffle_shards, seed)

    def examples(self, model: Any, cache_dir: str, batch_size: int, draws: Draws) -> "StreamedExamples":
        """What training sees; nothing is encoded now."""
        memory = Path(cache_dir).expanduser() / "hashes"
        fingerprint = hash_of(VERSION, *model.image_content, *model.text_content, self.fingerprint, memory=memory)
        return StreamedExamples(self, self.order(draws.seed), draws, model, fingerprint)

    def pixels(self, items: Sequence[tuple[int, int]], draws: np.ndarray) -> np.ndarray:
        """The images of some items, each cut as its draws in [0, 1) say, [B, 3] -> [B, H, W, 3] uint8."""
        contents: dict[tuple[int, int], bytes] = {}
        for shard in dict.fromkeys(shard for shard, _ in items):  # each is opened once
            own = [item for item in dict.fromkeys(items) if item[0] == shard]
            found = self.catalogue.contents(shard, [place for _, place in own])
            contents |= zip(own, found, strict=True)
        facts = [self.catalogue.item(*item)[1] for item in items]
        drawn = zip([contents[item] for item in items], facts, draws, strict=True)
        return np.stack([self.preparation.drawn(*each) for each in drawn])

    def framing(self, items: Sequence[tuple[int, int]], draws: np.ndarray) -> Tensor:
        """What Stable Diffusion XL is told of such cuts, [B, 6] (see t2i.data.images)."""
        facts = [self.catalogue.item(*item)[1] for item in items]
        return torch.tensor([self.preparation.drawn_framing(*each) for each in zip(facts, draws, strict=True)])

    def captions(self, items: Sequence[tuple[int, int]], draws: np.ndarray) -> list[str]:
        """One caption of each item, chosen by its draw in [0, 1)."""
        all_captions = [self.catalogue.item(*item)[0] for item in items]
        return [own[int(u * len(own))] for own, u in zip(all_captions, draws, strict=True)]


class Ahead:
    """Fetches and looks at the shards that are needed soon, in the background of whichever process reads."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue, self.thread = catalogue, None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"thread": None}

    def prepare(self) -> None:
        if self.thread is None or not self.thread.is_alive():  # never, done, or not since this process was forked
            self.thread = threading.Thread(target=self._prepare, daemon=True)
            self.thread.start()

    def _prepare(self) -> None:
        soon = self.catalogue.soon
        for shard in soon:
            if soon is not self.catalogue.soon:  # training has come further
                return
            try:
                self.catalogue.fetch(shard)
            except Exception as error:  # whoever needs the shard will meet it again, and say so
                log.debug("%s is not ready: %s", self.catalogue.shards[shard].name, error)


@dataclass(frozen=True)
class Read:
    """What a worker has read of a batch: all but what needs the encoders."""

    positions: list[int]
    items: list[tuple[int, int]]
    pixels: Tensor  # [B, H, W, 3] uint8
    framing: Tensor  # [B, 6]
    captions: list[str]  # empty where they are dropped


@dataclass
class StreamedExamples(torch.utils.data.Dataset):
    """Training examples by their position in the endless order: read in the workers, encoded in the loop's process."""

    stream: Stream
    order: StreamOrder
    draws: Draws
    model: Any
    fingerprint: str

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"model": None}  # what is sent to a worker

    def __getitems__(self, positions: list[int]) -> Read | ConfigError:
        """ConfigError if a shard can't be read: returned, for in a worker it would lose its shape."""
        try:
            self.stream.catalogue.soon = self.order.from_here(positions[0], self.stream.at_hand)
            items = [self.order[position] for position in positions]
            views = self.draws.draw(positions, "image", size=3)
            pixels, framing = self.stream.pixels(items, views), self.stream.framing(items, views)
            self.stream.ahead.prepare()
            captions = self.stream.captions(items, self.draws.draw(positions, "caption_choice"))
        except ConfigError as error:
            return error
        kept = ["" if drop else text for text, drop in zip(captions, self.draws.dropped(positions), strict=True)]
        return Read(positions, items, torch.from_numpy(pixels), framing, kept)

    def finish(self, read: Read | ConfigError) -> Batch:
        if isinstance(read, ConfigError):
            raise read
        moments = encode_pixels(read.pixels, self.model)
        text = self.model.embed(read.captions) | {"time_ids": read.framing}
        return self.draws.batch(read.positions, read.items, moments[:, 0], moments[:, 1], text)


def webdataset(
    path: str,
    image_column: str,
    caption_column: str,
    shuffle_shards: int,
    validation_shards: int,
    validation_items: int,
    resolution: int,
    crop: str,
    flip: bool,
    interpolation: str,
    buckets: bool,
    on_error: str,
    cache_dir: str,
) -> Captioned:
    """Shards on this machine: a folder and those below it, or a pattern.

    Held out is what is in the folder validation/, or else the last `validation_shards` by name.
    """
    preparation = _preparation(resolution, crop, flip, interpolation, buckets)
    _check(shuffle_shards, validation_items, on_error)
    source, shards = Files.find(path)
    held_out = matching(shards, "validation/*")
    train = [shard for shard in shards if shard not in held_out]
    columns, folder = Columns(image_column, caption_column), Path(cache_dir).expanduser() / "shards"
    catalogue = partial(Catalogue, source, path=path, columns=columns, folder=folder, on_error=on_error)
    sides = _sides(train, held_out, validation_shards, path)
    return _captioned(*map(catalogue, sides), preparation, shuffle_shards, 2 * shuffle_shards, validation_items)


def hub(
    path: str,
    revision: str | None,
    data_files: str,
    validation_files: str | None,
    image_column: str,
    caption_column: str,
    keep_shards: int,
    shuffle_shards: int,
    validation_shards: int,
    validation_items: int,
    resolution: int,
    crop: str,
    flip: bool,
    interpolation: str,
    buckets: bool,
    on_error: str,
    cache_dir: str,
) -> Captioned:
    """Shards in a data set's repository of the Hub, fetched one by one.

    Held out are those that fit `validation_files`, or else the last `validation_shards` of the others by name.
    """
    preparation = _preparation(resolution, crop, flip, interpolation, buckets)
    _check(shuffle_shards, validation_items, on_error)
    if keep_shards <= shuffle_shards:
        raise ConfigError(
            f"dataset.keep_shards={keep_shards} leaves no room to fetch ahead of the dataset.shuffle_shards="
            f"{shuffle_shards} that are read at a time; {2 * shuffle_shards} do"
        )
    folder = Path(cache_dir).expanduser() / "shards"
    source, shards = Repository.find(path, revision, folder, keep_shards)
    held_out = matching(shards, validation_files)
    train = [shard for shard in matching(shards, data_files) if shard not in held_out]
    if shards and not train:
        raise ConfigError(
            f"dataset.data_files={data_files} fits none of the {len(shards)} shards of {path}, such as {shards[0].name}"
        )
    columns = Columns(image_column, caption_column)
    catalogue = partial(Catalogue, source, path=path, columns=columns, folder=folder, on_error=on_error)
    sides = _sides(train, held_out, validation_shards, path)
    return _captioned(*map(catalogue, sides), preparation, shuffle_shards, keep_shards, validation_items)


def _preparation(resolution: int, crop: str, flip: bool, interpolation: str, buckets: bool) -> Preparation:
    if buckets:
        raise ConfigError("dataset.buckets=true needs all images beforehand, which a stream has not; use false")
    return Preparation(resolution, crop, 1, flip, interpolation, buckets=False, bucket_step=1)


def _check(shuffle_shards: int, validation_items: int, on_error: str) -> None:
    check_positive("dataset.shuffle_shards", shuffle_shards, "1 is the least")
    check_positive("dataset.validation_items", validation_items, "256 is common")
    check_policy(on_error)


def _sides(train: list[Shard], held_out: list[Shard], number: int, path: str) -> tuple[list[Shard], list[Shard]]:
    """What is trained on, and what is held out: if there is nothing yet, the last `number` shards by name."""
    if not train:
        raise ConfigError(f"dataset.path={path} holds no shard (.tar or .parquet)")
    if held_out:
        return train, held_out
    if not 0 < number < len(train):
        raise ConfigError(
            f"dataset.validation_shards={number} of {len(train)} shards of {path} can't be held out; at least one must "
            "be, and one left to train on"
        )
    return train[:-number], train[-number:]


def _captioned(
    train: Catalogue, held_out: Catalogue, preparation: Preparation, shuffle_shards: int, at_hand: int, number: int
) -> Captioned:
    stream = Stream(train, preparation, shuffle_shards, at_hand, Ahead(train))
    validation = _held_out(held_out, preparation.plain(), number)
    looked_at = [(part, shard) for part in (train, held_out) for shard in part.known()]
    skipped = [item for part, shard in looked_at for item in part.summary(shard)["skipped"]]
    return Captioned(stream, validation, skipped)


def _held_out(catalogue: Catalogue, preparation: Preparation, number: int) -> Split:
    """At most `number` images of the shards, chosen by their hashes."""
    items = []
    for shard in range(len(catalogue.shards)):
        for place in range(catalogue.count(shard)):
            captions, facts, _ = catalogue.item(shard, place)
            content = partial(_content, catalogue, shard, place)
            items.append(Item(f"{catalogue.shards[shard].name}: {place}", captions, content, facts))
    if not items:
        raise ConfigError(f"dataset.path={catalogue.path}: no image that is held out can be used")
    items = sorted(items, key=lambda item: (item.facts.sha256, item.captions))[:number]
    return prepared(items, [item.captions[:1] for item in items], preparation)


def _content(catalogue: Catalogue, shard: int, place: int) -> bytes:
    return catalogue.contents(shard, [place])[0]
