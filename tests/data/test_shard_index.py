import logging
import os
import shutil
import threading

import pytest
from helpers import packing

from t2i.config import ConfigError
from t2i.data.shard_index import ShardIndex
from t2i.data.shard_sources import Files
from t2i.data.shards import Columns


def index_of(folder, cache, caption="txt", on_error="stop"):
    source, shards = Files.find(str(folder))
    return ShardIndex(source, shards, "PATH", Columns("image", caption), cache, on_error)


@pytest.fixture
def folder(tmp_path):
    return packing.write_shards(tmp_path / "shards", "tar", 3, 5)


def test_items_have_the_order_of_their_hashes_in_any_form(folder, tmp_path):
    packing.write_shards(tmp_path / "rows", "parquet", 3, 5)
    found = [index_of(folder, tmp_path / "c"), index_of(tmp_path / "rows", tmp_path / "c", "text")]
    for each in found:
        for shard in range(3):
            numbers = sorted(range(5 * shard, 5 * shard + 5), key=packing.sha256)
            assert each.count(shard) == 5
            assert [each.item(shard, place)[0] for place in range(5)] == [(f"image {i}",) for i in numbers]
            assert each.contents(shard, [4, 0, 4]) == [packing.image(numbers[place]) for place in (4, 0, 4)]
            assert [each.item(shard, place)[1].sha256 for place in range(5)] == [packing.sha256(i) for i in numbers]


def test_an_index_outlives_its_shard(folder, tmp_path):
    before = index_of(folder, tmp_path / "cache")
    expected = [(before.count(shard), before.item(shard, 2)) for shard in range(3)]
    shards = before.shards
    shutil.rmtree(folder)
    after = ShardIndex(before.source, shards, "PATH", before.columns, before.folder, "stop")
    assert after.known() == [0, 1, 2]
    assert [(after.count(shard), after.item(shard, 2)) for shard in range(3)] == expected


def test_of_two_that_start_at_once_one_scans(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    both = [index_of(folder, tmp_path / "cache") for _ in range(2)]
    threads = [threading.Thread(target=each.count, args=(0,)) for each in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caplog.text.count("indexing the images of train-000.tar") == 1
    assert [index.summaries[0]["items"] for index in both] == [5, 5]


def test_items_that_cannot_be_used_end_the_run_or_have_no_place(tmp_path, caplog):
    members = packing.as_txt(range(4))
    members |= {"00001.txt": b" ", "00002.png": members["00002.png"][:-30], "x.png": packing.image(9)}
    packing.write_tar(tmp_path / "shards" / "a.tar", members)
    for _ in range(2):  # also when it is known already
        with pytest.raises(
            ConfigError, match=r"dataset.path=PATH: a.tar: 00001 has an empty caption: '' \(3 of 5 items"
        ):
            index_of(tmp_path / "shards", tmp_path / "cache").count(0)
    lenient = index_of(tmp_path / "shards", tmp_path / "new", on_error="skip")
    with caplog.at_level(logging.WARNING):
        assert lenient.count(0) == 2
    assert "3 of 5 items of PATH can't be used and are skipped" in caplog.text
    skipped = {each["item"]: each["reason"] for each in lenient.summary(0)["skipped"]}
    assert skipped["a.tar: 00001"] == "has an empty caption: ''"
    assert skipped["a.tar: 00002"].startswith("can't be read as an image")
    assert skipped["a.tar: x"].startswith("has no caption: there is no x.txt next to it")


def test_a_torn_shard_is_named_whatever_is_skipped(folder, tmp_path):
    file = folder / "train-001.tar"
    file.write_bytes(file.read_bytes()[:3000])
    found = index_of(folder, tmp_path / "cache", on_error="skip")
    assert found.count(0) == 5
    with pytest.raises(ConfigError, match=r"^dataset.path=PATH: train-001.tar is .*; fix or remove it$"):
        found.count(1)


def test_a_shard_that_changes_while_it_is_in_use_is_noticed(folder, tmp_path):
    found = index_of(folder, tmp_path / "cache")
    found.count(0)
    packing.write_tar(folder / "train-000.tar", packing.as_txt(range(5, 10)))
    with pytest.raises(ConfigError, match=r"train-000.tar has changed while it was in use"):
        found.contents(0, [0, 1])
    assert index_of(folder, tmp_path / "cache").contents(0, [0, 1])


def test_a_shard_that_is_replaced_by_one_of_equal_size_and_time_is_indexed_again(tmp_path):
    file = packing.write_shards(tmp_path / "shards", "tar", 1, 2) / "train-000.tar"

    def captions():
        source, shards = Files.find(str(tmp_path / "shards"))
        index = ShardIndex(source, shards, "shards", Columns("image", "txt"), tmp_path / "indices", "stop")
        return [index.item(0, number)[0] for number in range(index.count(0))]

    before, stat = captions(), file.stat()
    assert captions() == before
    text = before[0][0].encode()
    file.write_bytes(file.read_bytes().replace(text, text.upper()))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert captions()[0] == (before[0][0].upper(),)
