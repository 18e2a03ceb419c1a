"""The order in which training sees the images: each once an epoch, images of one size together, sources evenly."""

import logging
from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from t2i.config import ConfigError
from t2i.rng import generator

log = logging.getLogger(__name__)


class Order:
    """The endless sequence of training items: position -> item, shuffled each epoch by a function of seed and epoch.

    An epoch has round(sum of weights) positions; an item of weight w has floor(w) or ceil(w) of them (systematic
    resampling), so if all weights are one, every item is seen exactly once.
    """

    def __init__(self, weights: np.ndarray, seed: int, bucket: int = 0, stream: str = "order"):
        self.epoch_length = max(1, round(weights.sum()))
        self.edges = np.cumsum(weights) * (self.epoch_length / weights.sum())
        self.seed, self.bucket, self.stream = seed, bucket, stream
        self.latest: tuple[int, np.ndarray] | None = None  # the epoch that was used last, and its items

    def epoch(self, epoch: int) -> np.ndarray:
        """The items of an epoch in order, [epoch_length]."""
        random = generator(self.seed, self.stream, self.bucket, epoch)
        points = np.arange(self.epoch_length) + random.random()
        items = np.searchsorted(self.edges, points, side="right").clip(max=len(self.edges) - 1)
        return random.permutation(items)

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.epoch_length)
        if self.latest is None or self.latest[0] != epoch:
            self.latest = epoch, self.epoch(epoch)
        return int(self.latest[1][offset])


class MixedOrder:
    """An Order of several sources: position -> item. Each source has its part in every batch, to a whole image.

    The positions are divided into blocks, in which the uses of each source are spread evenly. Their part of a block is
    that of their weights to one in `BLOCK`. Within a source, images come as in an Order of their own.
    """

    BLOCK = 10_000  # positions

    def __init__(self, weights: np.ndarray, sources: np.ndarray, seed: int, bucket: int = 0):
        """sources: the source of each item, [N] integers."""
        self.epoch_length = max(1, round(weights.sum()))
        self.seed, self.bucket = seed, bucket
        self.members = [members for source in np.unique(sources) if len(members := np.flatnonzero(sources == source))]
        totals = np.array([weights[items].sum() for items in self.members])
        self.members = [items for items, total in zip(self.members, totals, strict=True) if total > 0]
        edges = np.append(0, (self.BLOCK * np.cumsum(totals[totals > 0]) / totals.sum()).round()).astype(int)
        self.uses = np.diff(edges)  # of each source in a block
        self.orders = [
            Order(weights[items] / weights[items].mean(), seed, bucket << 32 | source, stream="source_order")
            for source, items in enumerate(self.members)
        ]
        self.latest: tuple[int, np.ndarray, np.ndarray] | None = None  # the block that was used last, and its contents

    def block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position of a block, and which of the source's uses in the block it is, [BLOCK] each."""
        random = generator(self.seed, "mixture", self.bucket, block)
        places = [(np.arange(uses) + random.random()) / max(uses, 1) for uses in self.uses]
        source = np.repeat(np.arange(len(self.uses)), self.uses)
        use = np.concatenate([np.arange(uses) for uses in self.uses])
        by_place = np.argsort(np.concatenate(places), kind="stable")
        return source[by_place], use[by_place]

    def __getitem__(self, position: int) -> int:
        block, offset = divmod(position, self.BLOCK)
        if self.latest is None or self.latest[0] != block:
            self.latest = block, *self.block(block)
        source, use = int(self.latest[1][offset]), int(self.latest[2][offset])
        return int(self.members[source][self.orders[source][block * int(self.uses[source]) + use]])


class BucketOrder:
    """An Order for images of several sizes: position -> item, and all positions of an optimizer step have one size.

    Each bucket has an endless order of its own, which is dealt out in complete batches. The rest of a bucket at the end
    of an epoch comes first in the next, so a batch may contain the end of one round through the bucket and the
    beginning of the next; after any number of epochs every bucket is less than a batch behind.
    """

    def __init__(
        self, weights: np.ndarray, buckets: np.ndarray, batch_size: int, seed: int, sources: np.ndarray | None = None
    ):
        """buckets: the number of each item's bucket, [N], counted from 0 without gaps."""
        self.members = [np.flatnonzero(buckets == bucket) for bucket in range(buckets.max() + 1)]
        sources = np.zeros(len(weights), int) if sources is None else sources
        self.orders = [
            _within(weights[items], sources[items], seed, bucket) for bucket, items in enumerate(self.members, start=1)
        ]
        self.lengths = np.array([order.epoch_length for order in self.orders])
        self.batch_size, self.seed = batch_size, seed
        self.latest: tuple[int, np.ndarray] | None = None  # the epoch that was used last, and its buckets

    def dealt(self, epochs: int) -> np.ndarray:
        """How many batches of each bucket there are in the first epochs."""
        return epochs * self.lengths // self.batch_size

    def epoch(self, epoch: int) -> np.ndarray:
        """The bucket of each batch of an epoch."""
        batches = np.repeat(np.arange(len(self.orders)), self.dealt(epoch + 1) - self.dealt(epoch))
        return generator(self.seed, "order", epoch).permutation(batches)

    def __getitem__(self, position: int) -> int:
        step, offset = divmod(position, self.batch_size)
        epoch = int(position // self.lengths.sum())  # this one, or soon after
        while self.dealt(epoch + 1).sum() <= step:
            epoch += 1
        if self.latest is None or self.latest[0] != epoch:
            self.latest = epoch, self.epoch(epoch)
        buckets = self.latest[1]
        before = buckets[: step - self.dealt(epoch).sum()]
        bucket = buckets[len(before)]
        batch = self.dealt(epoch)[bucket] + np.count_nonzero(before == bucket)
        return int(self.members[bucket][self.orders[bucket][int(batch) * self.batch_size + offset]])


class StreamOrder:
    """An Order for items in shards that are not all on this machine: position -> (shard, number in the shard).

    The shards are permuted each epoch, and then the items within each `window` of shards. So few shards are needed at a
    time, and every item is still seen once an epoch. count: the number of items in a shard; it is called when the order
    first reaches the shard, which may have to be fetched to be counted.
    """

    def __init__(self, count: Callable[[int], int], num_shards: int, window: int, seed: int):
        self.count, self.num_shards, self.window, self.seed = count, num_shards, window, seed
        self.epoch_length: int | None = None  # once every shard is counted
        self.latest: tuple[tuple[int, int], np.ndarray] | None = None  # the window that was used last, and its items
        self.epoch: tuple[int, list[int], list[int]] = (-1, [], [])  # used last; its shards; the ends of its windows

    def shards(self, epoch: int) -> list[int]:
        """The shards of an epoch in order."""
        return generator(self.seed, "order", epoch).permutation(self.num_shards).tolist()

    def items(self, epoch: int, window: int) -> np.ndarray:
        """The items of a window of an epoch in order, each a shard and a number in it, [N, 2]."""
        if self.latest is None or self.latest[0] != (epoch, window):
            members = self.shards(epoch)[window * self.window :][: self.window]
            pairs = [(shard, number) for shard in members for number in range(self.count(shard))]
            shuffled = generator(self.seed, "order", 1 + window, epoch).permutation(np.array(pairs).reshape(-1, 2))
            self.latest = (epoch, window), shuffled
        return self.latest[1]

    def locate(self, position: int) -> tuple[int, int, int]:
        """Epoch, window of the epoch, and offset in the window.

        Raises ConfigError if no shard contains an item.
        """
        epoch, offset = divmod(position, self.epoch_length) if self.epoch_length else (0, position)
        if self.epoch[0] != epoch:
            self.epoch = epoch, self.shards(epoch), []
        _, shards, ends = self.epoch
        while len(ends) * self.window < len(shards) and (not ends or ends[-1] <= offset):
            members = shards[len(ends) * self.window :][: self.window]
            ends.append(sum(map(self.count, members)) + (ends[-1] if ends else 0))
        window = bisect_right(ends, offset)
        if window < len(ends):
            return epoch, window, offset - (ends[window - 1] if window else 0)
        self.epoch_length = sum(self.count(shard) for shard in range(self.num_shards))  # all have been counted by now
        if not self.epoch_length:
            raise ConfigError("dataset.path: no shard contains a usable image with a caption")
        return self.locate(position)

    def upcoming(self, position: int, number: int) -> list[int]:
        """The next shards from the window of a position on, without repetition, at most `number`."""
        epoch, window, _ = self.locate(position)
        shards = self.shards(epoch)[window * self.window :] + self.shards(epoch + 1)
        return list(dict.fromkeys(shards))[:number]

    def __getitem__(self, position: int) -> tuple[int, int]:
        epoch, window, offset = self.locate(position)
        shard, number = self.items(epoch, window)[offset].tolist()
        return shard, number


def _within(weights: np.ndarray, sources: np.ndarray, seed: int, bucket: int = 0) -> Order | MixedOrder:
    """The order of items of one size."""
    if len(np.unique(sources)) > 1:
        return MixedOrder(weights, sources, seed, bucket)
    return Order(weights, seed, bucket)


def order(
    weights: np.ndarray, sizes: np.ndarray, batch_size: int, seed: int, sources: np.ndarray | None = None
) -> Order | MixedOrder | BucketOrder:
    """The order of items of the given sizes, [N, 2], weights, [N], and sources, [N] (None: there is one)."""
    different, buckets = np.unique(sizes, axis=0, return_inverse=True)
    if len(different) == 1:
        return _within(weights, np.zeros(len(weights), int) if sources is None else sources, seed)
    small = np.bincount(buckets.reshape(-1)) < batch_size
    if small.any():
        message = (
            "%d of %d buckets contain fewer images than a batch, so an image may occur in it more than once; a larger "
            "dataset.bucket_step gives fewer, larger buckets"
        )
        log.warning(message, small.sum(), len(small))
    return BucketOrder(weights, buckets.reshape(-1), batch_size, seed, sources)
