"""Splits that are encoded into the cache before training, and the training examples read from there."""

from dataclasses import dataclass

import torch

from t2i.data.batches import Batch, Draws
from t2i.data.latent_cache import Encoded, encode
from t2i.data.samplers import BucketOrder, MixedOrder, Order, order
from t2i.data.splits import Split
from t2i.models.model import Model


@dataclass
class Examples:
    """Training examples by their position in the endless order; the batch at some positions is always the same."""

    encoded: Encoded
    order: Order | MixedOrder | BucketOrder
    draws: Draws

    @property
    def fingerprint(self) -> str:
        return self.encoded.fingerprint

    def __getitems__(self, positions: list[int]) -> Batch:
        items = [self.order[position] for position in positions]
        views = self.draws.draw(positions, "image")
        mean, std = self.encoded.moments(items, views)
        kept = [None if drop else item for item, drop in zip(items, self.draws.dropped(positions), strict=True)]
        text = self.encoded.text(kept, self.draws.draw(positions, "caption_choice"))
        text["time_ids"] = self.encoded.framing(items, views)
        batch = self.draws.batch(positions, items, torch.from_numpy(mean), torch.from_numpy(std), text)
        batch.weight = self.encoded.weight(items, views)
        return batch

    def finish(self, read: Batch) -> Batch:
        """The batch as it is: a worker does all the work."""
        return read


@dataclass(frozen=True)
class CachedSplit(Split):
    """A split that can be trained on: it is encoded into the cache first."""

    def examples(self, model: Model, cache_dir: str, batch_size: int, draws: Draws) -> Examples:
        encoded = encode(self, model, cache_dir)
        return Examples(encoded, order(self.weights, encoded.sizes(), batch_size, draws.seed, self.sources), draws)
