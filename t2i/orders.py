"""The order in which training sees the pictures: once an epoch, and those of one size together."""

import logging

import numpy as np

from t2i.draws import generator

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
    """The same for pictures of several sizes: position -> item, where the positions of an optimizer step have one size.

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


def order(weights: np.ndarray, sizes: np.ndarray, batch_size: int, seed: int) -> Order | BucketOrder:
    """The order of items of the sizes [N, 2]; weights are [N]."""
    different, buckets = np.unique(sizes, axis=0, return_inverse=True)
    if len(different) == 1:
        return Order(weights, seed)
    small = np.bincount(buckets.reshape(-1)) < batch_size
    if small.any():
        log.warning(
            "%d of %d buckets hold fewer pictures than a batch, so that one may stand in it more than once; a larger "
            "dataset.bucket_step makes fewer and larger buckets", small.sum(), len(small),
        )  # fmt: skip
    return BucketOrder(weights, buckets.reshape(-1), batch_size, seed)
