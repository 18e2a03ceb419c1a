"""What the tests of data sets share."""

import datasets
import pytest
from helpers import hub_server, packing


@pytest.fixture(autouse=True)
def scans(tmp_path_factory, monkeypatch):
    """The results of scanning images are stored, but not for other tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def shards(tmp_path):
    """A folder of 20 tar files with 3 images each; the last is held out."""
    return packing.write_shards(tmp_path / "shards", "tar", 20, 3)


@pytest.fixture
def served(monkeypatch, shards):
    """The same shards on a stand-in for the Hub."""
    with hub_server.asked_instead(monkeypatch) as hub:
        hub.repositories["lab/images"] = {f"data/{file.name}": file.read_bytes() for file in shards.iterdir()}
        yield hub
