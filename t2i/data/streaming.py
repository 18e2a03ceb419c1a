"""Streams: the images of shards, read and encoded while training; they are never all on the disk or in the cache."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from t2i.config import ConfigError
from t2i.data.batches import Batch, Draws
from t2i.data.fingerprints import hash_of
from t2i.data.images import Facts
from t2i.data.latent_cache import encode_pixels
from t2i.data.preparation import Preparation
from t2i.data.samplers import StreamOrder
from t2i.data.shard_index import ShardIndex
from t2i.data.shard_prefetcher import ShardPrefetcher
from t2i.models.model import Model

VERSION = "1"  # of what a stream reads from shards; part of the fingerprint


@dataclass(frozen=True)
class Stream:
    """Captioned images in shards. An item is the number of its shard, and its number in the shard's index."""

    cached: ClassVar[bool] = False
    index: ShardIndex
    preparation: Preparation
    shuffle_shards: int
    lookahead: int  # shards that are requested at a time: those that are read now, and the next

    @property
    def fingerprint(self) -> str:
        content = repr((VERSION, self.index.fingerprint(), self.preparation.effect()))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def images(self) -> int | None:
        """The number of images, if every shard has been indexed before."""
        shards, known = self.index.shards, self.index.known()
        return sum(map(self.index.count, known)) if len(known) == len(shards) else None

    def order(self, seed: int) -> StreamOrder:
        return StreamOrder(self.index.count, len(self.index.shards), self.shuffle_shards, seed)

    def examples(self, model: Model, cache_dir: str, batch_size: int, draws: Draws) -> "StreamedExamples":
        """The training examples; nothing is encoded before they are read."""
        memory = Path(cache_dir).expanduser() / "hashes"
        fingerprint = hash_of(VERSION, *model.image_content, *model.text_content, self.fingerprint, memory=memory)
        prefetcher = ShardPrefetcher(self.index)
        return StreamedExamples(self, self.order(draws.seed), draws, model, prefetcher, fingerprint)

    def pixels(self, items: Sequence[tuple[int, int]], draws: np.ndarray) -> np.ndarray:
        """A random view of each item, [B, H, W, 3] uint8. draws: see Preparation.drawn, [B, 3]."""
        contents: dict[tuple[int, int], bytes] = {}
        for shard in dict.fromkeys(shard for shard, _ in items):  # each shard is opened once
            of_shard = [item for item in dict.fromkeys(items) if item[0] == shard]
            contents |= zip(of_shard, self.index.contents(shard, [number for _, number in of_shard]), strict=True)
        views = [
            self.preparation.drawn(contents[item], facts, own_draws)
            for item, facts, own_draws in zip(items, self._facts(items), draws, strict=True)
        ]
        return np.stack(views)

    def framing(self, items: Sequence[tuple[int, int]], draws: np.ndarray) -> Tensor:
        """Size and crop conditioning of Stable Diffusion XL for the same views, [B, 6] (see t2i.data.preparation)."""
        facts = self._facts(items)
        return torch.tensor([self.preparation.drawn_framing(*pair) for pair in zip(facts, draws, strict=True)])

    def captions(self, items: Sequence[tuple[int, int]], draws: np.ndarray) -> list[str]:
        """One caption of each item, chosen by its draw in [0, 1)."""
        all_captions = [self.index.item(*item)[0] for item in items]
        return [captions[int(u * len(captions))] for captions, u in zip(all_captions, draws, strict=True)]

    def _facts(self, items: Sequence[tuple[int, int]]) -> list[Facts]:
        return [self.index.item(*item)[1] for item in items]


@dataclass(frozen=True)
class Read:
    """What a worker has read of a batch: everything but the encodings."""

    positions: list[int]
    items: list[tuple[int, int]]
    pixels: Tensor  # [B, H, W, 3] uint8
    framing: Tensor  # [B, 6]
    captions: list[str]  # empty where they are dropped


@dataclass
class StreamedExamples:
    """Training examples by their position in the endless order: read in the workers, encoded in the loop's process."""

    stream: Stream
    order: StreamOrder
    draws: Draws
    model: Model  # missing in a worker
    prefetcher: ShardPrefetcher
    fingerprint: str

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "model"}  # which workers do not use

    def __getitems__(self, positions: list[int]) -> Read | ConfigError:
        """What a worker reads; or the ConfigError of an unreadable shard, whose message a raising worker would lose."""
        try:
            self.prefetcher.request(self.order.upcoming(positions[0], self.stream.lookahead))
            items = [self.order[position] for position in positions]
            views = self.draws.draw(positions, "image", size=3)
            pixels, framing = self.stream.pixels(items, views), self.stream.framing(items, views)
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
