import pickle
import threading
import time

import pytest

from t2i.config import ConfigError
from t2i.data.shard_prefetcher import ShardPrefetcher
from t2i.data.shards import Shard


class Index:
    """Stands for a ShardIndex: notes which shards are fetched and protected; shard 0 waits for `gate`, 9 is broken."""

    def __init__(self):
        self.shards = [Shard(f"{number}.tar", "", "") for number in range(10)]
        self.fetched, self.protected, self.gate = [], (), threading.Event()

    def protect(self, shards):
        self.protected = shards

    def fetch(self, shard):
        if shard == 0:
            self.gate.wait(10)
        if shard == 9:
            raise ConfigError("broken")
        self.fetched.append(shard)


@pytest.fixture
def index():
    return Index()


def fetched(index, number):
    """The shards that are fetched, once there are so many of them."""
    deadline = time.monotonic() + 10
    while len(index.fetched) < number and time.monotonic() < deadline:
        time.sleep(0.01)
    return index.fetched


def test_shards_are_fetched_in_order_and_protected(index):
    ShardPrefetcher(index).request([3, 1, 2])
    assert fetched(index, 3) == [3, 1, 2]
    assert index.protected == [3, 1, 2]


def test_a_broken_shard_does_not_keep_the_others_back(index):
    ShardPrefetcher(index).request([9, 1])
    assert fetched(index, 1) == [1]


def test_a_new_request_replaces_the_one_that_is_worked_on(index):
    prefetcher = ShardPrefetcher(index)
    prefetcher.request([0, 1, 2])
    prefetcher.request([3])
    index.gate.set()
    assert fetched(index, 2) == [0, 3]
    assert index.protected == [3]


def test_another_process_starts_its_own_thread(index):
    prefetcher = ShardPrefetcher(index)
    prefetcher.request([1])
    fetched(index, 1)
    index.gate = None  # can't be pickled
    copy = pickle.loads(pickle.dumps(prefetcher))
    copy.request([2])
    assert fetched(copy.index, 2) == [1, 2]
    assert index.fetched == [1]
