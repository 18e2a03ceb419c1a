import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i.config import ConfigError
from t2i.data.loader import MicroBatches
from t2i.data.samplers import BucketOrder, Order, StreamOrder, order


@given(st.integers(1, 200), st.integers(0, 2**31), st.integers(0, 1000))
def test_every_image_is_seen_once_an_epoch(num_items, seed, epoch):
    order = Order(np.ones(num_items), seed)
    seen = [order[position] for position in range(epoch * num_items, (epoch + 1) * num_items)]
    assert sorted(seen) == list(range(num_items))


@pytest.mark.slow
@given(st.lists(st.floats(0.01, 3), min_size=1, max_size=30))
def test_weights_are_how_often_an_image_is_seen(weights):
    """Within an epoch up to rounding; exactly on average over epochs."""
    weights = np.array(weights)
    order = Order(weights, seed=0)
    expected = weights * order.epoch_length / weights.sum()
    counts = np.stack([np.bincount(order.epoch(epoch), minlength=len(weights)) for epoch in range(400)])
    assert (counts >= np.floor(expected - 1e-9)).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()
    assert np.abs(counts.mean(0) - expected).max() < 0.15


def test_epochs_and_seeds_are_shuffled_differently():
    orders = [Order(np.ones(100), seed).epoch(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


bucketed = st.fixed_dictionaries(
    {"buckets": st.lists(st.integers(1, 40), min_size=1, max_size=6), "batch_size": st.integers(1, 30)}
)


def many(buckets, batch_size, seed=0):
    """An order of sum(buckets) items, and the bucket of each item."""
    of_item = np.random.default_rng(0).permutation(np.repeat(np.arange(len(buckets)), buckets))
    return BucketOrder(np.ones(len(of_item)), of_item, batch_size, seed), of_item


@given(bucketed, st.integers(0, 50))
def test_every_batch_has_one_size(given_buckets, step):
    endless, of_item = many(**given_buckets)
    size = given_buckets["batch_size"]
    items = [endless[position] for position in range(step * size, (step + 1) * size)]
    assert len({of_item[item] for item in items}) == 1


@given(bucketed, st.integers(1, 4))
def test_each_bucket_is_less_than_a_batch_behind_after_each_epoch(given_buckets, epochs):
    """Within a bucket every image is seen once before any is seen again."""
    endless, of_item = many(**given_buckets)
    size, sizes = given_buckets["batch_size"], np.array(given_buckets["buckets"])
    positions = range(endless.dealt(epochs).sum() * size)
    seen = np.bincount([endless[position] for position in positions], minlength=len(of_item))
    for bucket, length in enumerate(sizes):
        counts = seen[of_item == bucket]
        assert counts.max() - counts.min() <= 1
        assert counts.max() <= epochs
        assert 0 <= epochs * length - counts.sum() < size


@given(bucketed, st.integers(0, 2**31), st.lists(st.integers(0, 3000), min_size=1, max_size=8))
def test_an_item_depends_on_seed_and_position_alone(given_buckets, seed, positions):
    """It does not depend on the positions that were used before."""
    endless, _ = many(**given_buckets, seed=seed)
    among_others = [endless[position] for position in positions]
    assert among_others == [many(**given_buckets, seed=seed)[0][position] for position in positions]


def test_a_bucketed_step_is_the_same_however_it_is_split():
    endless, _ = many([30, 20, 7], 16)
    steps = []
    for micro_batch_size, num_processes in ((16, 1), (4, 2)):
        ranks = [MicroBatches(16, micro_batch_size, 5, 9, rank, num_processes) for rank in range(num_processes)]
        steps.append(sorted(endless[position] for split in ranks for batch in split for position in batch))
    assert steps[0] == steps[1]


def test_large_buckets_come_more_often_and_seeds_differ():
    endless, of_item = many([300, 100], 10)
    batches = np.array([of_item[endless[step * 10]] for step in range(400)])
    assert (batches == 0).sum() == 300
    assert len({tuple(many([300, 100], 10, seed)[0].epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_images_of_one_size_need_no_buckets():
    plain = order(np.ones(9), np.full((9, 2), 16), 4, seed=3)
    assert isinstance(plain, Order)
    assert [plain[position] for position in range(27)] == [Order(np.ones(9), 3)[position] for position in range(27)]
    assert isinstance(order(np.ones(2), np.array([[16, 16], [16, 24]]), 4, seed=3), BucketOrder)


counts = st.lists(st.integers(0, 12), min_size=1, max_size=7).filter(any)


def streamed(counts, window, seed=0):
    """An order over shards with these numbers of items, and the list of the shards that it has counted."""
    asked = []

    def count(shard):
        asked.append(shard)
        return counts[shard]

    return StreamOrder(count, len(counts), window, seed), asked


@given(counts, st.integers(1, 4), st.integers(0, 2**31), st.integers(0, 3))
def test_every_item_of_every_shard_is_seen_once_an_epoch(counts, window, seed, epoch):
    endless, _ = streamed(counts, window, seed)
    length = sum(counts)
    seen = [endless[position] for position in range(epoch * length, (epoch + 1) * length)]
    assert sorted(seen) == [(shard, place) for shard, count in enumerate(counts) for place in range(count)]


@given(counts, st.integers(1, 4), st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_the_item_of_a_stream_depends_on_seed_and_position_alone(counts, window, positions):
    """So a resumed run sees what the uninterrupted one would have seen."""
    whole, _ = streamed(counts, window)
    uninterrupted = [whole[position] for position in range(max(positions) + 1)]
    among_others, _ = streamed(counts, window)
    for position in positions:
        assert streamed(counts, window)[0][position] == among_others[position] == uninterrupted[position]


@given(counts, st.integers(1, 4), st.integers(0, 60))
def test_no_more_than_a_window_of_shards_is_needed_at_once(counts, window, position):
    endless, _ = streamed(counts, window)
    epoch, number, _ = endless.locate(position)
    needed = endless.upcoming(position, window)
    assert endless[position][0] in needed
    assert set(endless.items(epoch, number)[:, 0].tolist()) <= set(needed)
    assert len(endless.upcoming(position, 100)) == len(counts)


def test_shards_are_counted_when_the_order_reaches_them():
    endless, asked = streamed([5, 5, 5, 5, 5, 5], window=2)
    endless[9]
    assert set(asked) == set(endless.shards(0)[:2])
    endless[10]
    assert set(asked) == set(endless.shards(0)[:4])


def test_shards_and_items_are_shuffled_differently_in_each_epoch_and_by_each_seed():
    seen = [
        tuple(streamed([9, 9, 9, 9], 2, seed)[0][36 * epoch + i] for i in range(36))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(seen)) == 4
    assert all(len({shard for shard, _ in order[:12]}) == 2 for order in seen)


def test_shards_without_a_single_item_are_no_data_set():
    with pytest.raises(ConfigError, match="no shard contains a usable image"):
        streamed([0, 0], 1)[0][0]
