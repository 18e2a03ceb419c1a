"""The order in which training sees the images: once an epoch, and those of one size together."""

import logging
from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from t2i.config import ConfigError
from t2i.rng import generator

log = logging.getLogger(__name__)


class Order:
    """The endless sequence of training items: position -> item, shuffled anew each epoch, f(seed, epoch) only.

    An epoch has round(sum of weights) places; an item of weight w stands in floor(w) or ceil(w) of them (systematic
    resampling), so with weights of one every item is seen exactly once.
    """

    def __init__(self, weights: np.ndarray, seed: int, bucket: int = 0):
        self.epoch_length = max(1, round(weights.sum()))
        self.edges = np.cumsum(weights) * (self.epoch_length / weights.sum())
        self.seed, self.bucket = seed, bucket
        self.known: tuple[int, np.ndarray] | None = None  # the epoch that was asked for last

    def epoch(self, epoch: int) -> np.ndarray:
        """The items at the places of an epoch, [epoch_length]."""
        random = generator(self.seed, "order", self.bucket, epoch)
        places = np.arange(self.epoch_length) + random.random()
        items = np.searchsorted(self.edges, places, side="right").clip(max=len(self.edges) - 1)
        return random.permutation(items)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.epoch_length)
        if self.known is None or self.known[0] != epoch:
            self.known = epoch, self.epoch(epoch)
        return int(self.known[1][place])


class BucketOrder:
    """The same for images of several sizes: position -> item, where the positions of an optimizer step have one size.

    Each bucket has an endless order of its own, dealt in whole batches. What is left of a bucket at the end of an epoch
    comes first in the next, so that a batch may hold the end of one round through the bucket and the beginning of the
    next; after any number of epochs every bucket is less than a batch behind.
    """

    def __init__(self, weights: np.ndarray, buckets: np.ndarray, batch_size: int, seed: int):
        """buckets: the number of each item's bucket, [N], from 0 on without gaps."""
        self.members = [np.flatnonzero(buckets == bucket) for bucket in range(buckets.max() + 1)]
        self.orders = [Order(weights[items], seed, bucket) for bucket, items in enumerate(self.members, start=1)]
        self.lengths = np.array([order.epoch_length for order in self.orders])
        self.batch_size, self.seed = batch_size, seed
        self.known: tuple[int, np.ndarray] | None = None  # the epoch that was asked for last

    def dealt(self, epochs: int) -> np.ndarray:
        """How many batches of each bucket there are in the first epochs."""
        return epochs * self.lengths // self.batch_size

    def epoch(self, epoch: int) -> np.ndarray:
        """The bucket of each batch of an epoch."""
        batches = np.repeat(np.arange(len(self.orders)), self.dealt(epoch + 1) - self.dealt(epoch))
        return generator(self.seed, "order", epoch).permutation(batches)

    def __getitem__(self, position: int) -> int:
        step, place = divmod(position, self.batch_size)
        epoch = position // self.lengths.sum()  # or soon after
        while self.dealt(epoch + 1).sum() <= step:
            epoch += 1
        if self.known is None or self.known[0] != epoch:
            self.known = epoch, self.epoch(epoch)
        before = self.known[1][: step - self.dealt(epoch).sum()]
        bucket = self.known[1][len(before)]
        batch = self.dealt(epoch)[bucket] + np.count_nonzero(before == bucket)
        return int(self.members[bucket][self.orders[bucket][int(batch) * self.batch_size + place]])


class StreamOrder:
    """The same for items in shards that are not all at hand: position -> (shard, place in it).

    The shards are permuted anew each epoch, and the items within each `window` of shards, one after the other. So few
    shards are needed at a time, and every item is still seen once an epoch. count: how many items a shard has; asked of
    a shard when the order first reaches it, for it may have to be fetched to be counted.
    """

    def __init__(self, count: Callable[[int], int], num_shards: int, window: int, seed: int):
        self.count, self.num_shards, self.window, self.seed = count, num_shards, window, seed
        self.epoch_length: int | None = None  # once every shard is counted
        self.known: tuple[tuple[int, int], np.ndarray] | None = None  # the window that was asked for last
        self.epoch: tuple[int, list[int], list[int]] = (-1, [], [])  # asked for last; its shards; where windows end

    def shards(self, epoch: int) -> list[int]:
        """The shards in the order of an epoch."""
        return generator(self.seed, "order", epoch).permutation(self.num_shards).tolist()

    def items(self, epoch: int, window: int) -> np.ndarray:
        """The items of a window of an epoch as they are seen, each a shard and a place in it, [N, 2]."""
        if self.known is None or self.known[0] != (epoch, window):
            members = self.shards(epoch)[window * self.window :][: self.window]
            pairs = [(shard, place) for shard in members for place in range(self.count(shard))]
            shuffled = generator(self.seed, "order", 1 + window, epoch).permutation(np.array(pairs).reshape(-1, 2))
            self.known = (epoch, window), shuffled
        return self.known[1]

    def locate(self, position: int) -> tuple[int, int, int]:
        """Epoch, window of the epoch, and place in the window.

        Raises ConfigError if no shard holds an item.
        """
        epoch, place = divmod(position, self.epoch_length) if self.epoch_length else (0, position)
        if self.epoch[0] != epoch:
            self.epoch = epoch, self.shards(epoch), []
        _, shards, ends = self.epoch
        while len(ends) * self.window < len(shards) and (not ends or ends[-1] <= place):
            members = shards[len(ends) * self.window :][: self.window]
            ends.append(sum(map(self.count, members)) + (ends[-1] if ends else 0))
        window = bisect_right(ends, place)
        if window < len(ends):
            return epoch, window, place - (ends[window - 1] if window else 0)
        self.epoch_length = sum(self.count(shard) for shard in range(self.num_shards))  # all have been counted by now
        if not self.epoch_length:
            raise ConfigError("dataset.path: no shard holds an image with a caption that can be used")
        return self.locate(position)

    def from_here(self, position: int, number: int) -> list[int]:
        """The next shards from the window of a position on, without repetition, at most `number`."""
        epoch, window, _ = self.locate(position)
        upcoming = self.shards(epoch)[window * self.window :] + self.shards(epoch + 1)
        return list(dict.fromkeys(upcoming))[:number]

    def __getitem__(self, position: int) -> tuple[int, int]:
        epoch, window, place = self.locate(position)
        shard, place = self.items(epoch, window)[place].tolist()
        return shard, place


def order(weights: np.ndarray, sizes: np.ndarray, batch_size: int, seed: int) -> Order | BucketOrder:
    """The order of items of the sizes [N, 2]; weights are [N]."""
    different, buckets = np.unique(sizes, axis=0, return_inverse=True)
    if len(different) == 1:
        return Order(weights, seed)
    small = np.bincount(buckets.reshape(-1)) < batch_size
    if small.any():
        log.warning(
            "%d of %d buckets hold fewer images than a batch, so that one may stand in it more than once; a larger "
            "dataset.bucket_step makes fewer and larger buckets", small.sum(), len(small),
        )  # fmt: skip
    return BucketOrder(weights, buckets.reshape(-1), batch_size, seed)
