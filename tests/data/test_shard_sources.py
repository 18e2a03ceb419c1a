"""Shards on this machine, and shards that the Hub's real client fetches from a small stand-in for the Hub."""

import logging
import multiprocessing
import os
import time

import huggingface_hub
import pytest
from helpers import hub_server, packing

from t2i.config import ConfigError
from t2i.data.shard_sources import Files, Repository, matching


@pytest.fixture
def hub(monkeypatch):
    with hub_server.asked_instead(monkeypatch) as hub:
        hub.repositories["lab/images"] = {f"data/train-{i}.tar": bytes([i]) * 1000 for i in range(6)}
        hub.repositories["lab/images"] |= {"README.md": b"words", "data/validation-0.tar": b"v"}
        yield hub


def find(folder, keep=3, pauses=()):
    source, shards = Repository.find("lab/images", None, folder, keep)
    return Repository(source.path, source.commit, source.folder, keep, pauses), matching(shards, "data/train-*")


def here(folder):
    return [file for file in folder.rglob("*") if file.suffix == ".tar"]


def downloads(hub):
    return [line.rpartition("/")[2] for line in hub.asked if line.startswith("GET /datasets/")]


def read(source, shard, protected=()):
    with source.open(shard, protected) as file:
        time.sleep(0.01)  # for file systems with a coarse clock
        return file.read()


@pytest.mark.parametrize("name", ["folder", "folder/*.tar", "folder/**/*.tar", "fold*/train-*"])
def test_shards_in_a_folder_or_of_a_pattern_come_by_name(name, tmp_path):
    packing.write_shards(tmp_path / "folder", "tar", 3, 1)
    (tmp_path / "folder" / "README.md").touch()
    source, shards = Files.find(str(tmp_path / name))
    assert [shard.name.rpartition("/")[2] for shard in shards] == [f"train-00{i}.tar" for i in range(3)]
    with source.open(shards[1]) as file:
        assert file.read() == (tmp_path / "folder" / "train-001.tar").read_bytes()


def test_a_copied_shard_has_the_same_content_and_another_state(tmp_path):
    file = packing.write_shards(tmp_path / "a", "tar", 1, 1) / "train-000.tar"
    before = Files.find(str(tmp_path / "a"))[1]
    assert Files.find(str(tmp_path / "a"))[1] == before
    os.utime(file, ns=(0, 0))
    (after,) = Files.find(str(tmp_path / "a"))[1]
    assert (after.name, after.content) == (before[0].name, before[0].content)
    assert after.state != before[0].state


@pytest.mark.slow
def test_no_more_shards_are_on_the_disk_than_are_to_be_kept(hub, tmp_path):
    source, shards = find(tmp_path)
    assert [shard.name for shard in shards] == [f"data/train-{i}.tar" for i in range(6)]
    for round in range(2):
        for i, shard in enumerate(shards):
            assert read(source, shard) == bytes([i]) * 1000
            assert len(here(tmp_path)) == min(3, i + 1 if not round else 3)
    assert len(downloads(hub)) == 12
    assert not [
        file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".tar" and file.name != ".lock"
    ]


def test_what_is_needed_soon_or_was_used_last_stays(hub, tmp_path):
    source, shards = find(tmp_path)
    for i in (0, 1, 2, 0):
        read(source, shards[i])
    read(source, shards[3])  # 1 goes: it was used longest ago
    read(source, shards[4], protected=[shards[2]])  # 2 would go, but for 0
    before = len(downloads(hub))
    for i in (2, 3, 4):
        read(source, shards[i])
    assert len(downloads(hub)) == before == 5


def test_a_reader_is_not_disturbed_when_its_shard_is_removed(hub, tmp_path):
    source, shards = find(tmp_path, keep=1)
    with source.open(shards[0]) as file:
        read(source, shards[1])
        assert len(here(tmp_path)) == 1
        assert file.read() == bytes(1000)


def _read_all(folder, order):
    source, shards = find(folder)
    for i in order:
        assert read(source, shards[i]) == bytes([i]) * 1000
        assert len(here(folder)) <= 3


@pytest.mark.slow
def test_processes_share_what_is_here(hub, tmp_path):
    """Two processes in the same order fetch each shard once; in different orders both read the right content."""
    context = multiprocessing.get_context("fork")
    for orders in ([range(3)] * 2, [[5, 4, 3, 2, 1, 0], range(6)]):
        hub.asked.clear()
        processes = [context.Process(target=_read_all, args=(tmp_path, order)) for order in orders]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        assert len(orders[0]) > 3 or sorted(downloads(hub)) == [f"train-{i}.tar" for i in range(3)]


def test_temporary_failures_are_retried(hub, tmp_path, monkeypatch, caplog):
    source, shards = find(tmp_path, pauses=(0, 0))
    original, faults = huggingface_hub.hf_hub_download, [ConnectionError("unplugged"), TimeoutError("slow")]

    def unsteady(*arguments, **settings):
        if faults:
            raise faults.pop(0)
        return original(*arguments, **settings)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unsteady)
    assert read(source, shards[2]) == bytes([2]) * 1000
    assert "fetching data/train-2.tar failed (unplugged); retrying" in caplog.text
    faults += [ConnectionError("unplugged")] * 3
    with pytest.raises(
        ConfigError, match=r"data/train-3.tar can't be fetched \(unplugged\); once it is available, repeat"
    ):
        source.open(shards[3])


def test_a_shard_that_is_gone_is_named_at_once(hub, tmp_path):
    source, shards = find(tmp_path, pauses=(60,))
    del hub.repositories["lab/images"]["data/train-2.tar"]
    with pytest.raises(ConfigError, match=r"dataset.path=lab/images: data/train-2.tar can't be fetched .*404"):
        source.open(shards[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "offline", "message"),
    [
        ("lab/images", True, r"dataset.path=lab/images is not on this machine, .* \(HF_HUB_OFFLINE is set\)"),
        (
            "lab/nothing",
            False,
            r"dataset.path=lab/nothing can't be read \(.*404.*\); give the id of an accessible data set",
        ),
        ("./images", False, r"dataset.path=./images is not a repository of the Hub .* use dataset=webdataset"),
    ],
)
def test_a_repository_that_cannot_be_reached(hub, tmp_path, monkeypatch, path, offline, message):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(ConfigError, match=message) as error:
        Repository.find(path, None, tmp_path, 3)
    assert "\n" not in str(error.value)


def test_being_offline_is_reported_in_one_line_even_with_a_folder_in_the_hubs_cache(hub, tmp_path, monkeypatch):
    """The Hub's own cache has a folder of that repository, as after `dataset=hub`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "datasets--lab--images").mkdir()
    with pytest.raises(ConfigError, match=r"dataset.path=lab/images can't be read \(.*offline") as error:
        Repository.find("lab/images", None, tmp_path, 3)
    assert "\n" not in str(error.value)


def test_fetching_is_logged(hub, tmp_path, caplog):
    source, shards = find(tmp_path)
    with caplog.at_level(logging.INFO):
        read(source, shards[0])
        read(source, shards[0])
    assert caplog.text.count("fetching data/train-0.tar") == 1


@pytest.mark.parametrize("name", ["[artist] shards", "[artist] shards/*.tar", "[artist] shards/train-000.tar"])
def test_a_folder_in_brackets_is_no_pattern(name, tmp_path):
    packing.write_shards(tmp_path / "[artist] shards", "tar", 1, 1)
    assert [shard.name.rpartition("/")[2] for shard in Files.find(str(tmp_path / name))[1]] == ["train-000.tar"]
