"""Data sets in shards: what is held out, which settings are refused, and what is fetched from the Hub."""

import time

import pytest
from helpers import packing

from t2i.config import ConfigError
from t2i.data.batches import Draws
from t2i.diffusion.timesteps import Uniform
from t2i.encode import main as fill_cache
from t2i.models.stable_diffusion import load

DRAWS = Draws(1000, Uniform(), caption_dropout=0.1, noise_offset=0.0, input_perturbation=0.0, seed=0)


@pytest.fixture
def model(small_pipeline):
    return load(str(small_pipeline))


def test_a_stream_and_what_is_held_out(shards, tmp_path):
    data = packing.from_files(shards, tmp_path / "cache")
    assert data.train.images is None  # no shard has been indexed yet
    assert sorted(data.validation.captions) == [(packing.caption(i),) for i in (57, 58, 59)]
    assert data.validation.pixels(0).shape == (16, 16, 3)
    for shard in range(19):
        data.train.index.count(shard)
    assert packing.from_files(shards, tmp_path / "cache").train.images == 57
    (shards / "validation").mkdir()
    (shards / "train-005.tar").rename(shards / "validation" / "train-005.tar")
    apart = packing.from_files(shards, tmp_path / "cache", validation_items=2)
    assert len(apart.train.index.shards) == 19
    assert set(apart.validation.captions) < {(packing.caption(i),) for i in (15, 16, 17)}
    assert len(apart.validation) == 2


def test_only_what_is_held_out_is_encoded_ahead(shards, small_pipeline, tmp_path, capsys):
    given = [f"dataset.path={shards}", f"model.path={small_pipeline}", f"cache_dir={tmp_path}/cache"]
    fill_cache(["dataset=webdataset", "model=tiny", "dataset.resolution=64", *given])
    said = capsys.readouterr().out
    assert "train: streamed" in said
    assert "validation: 3 images" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": True}, "dataset.buckets=true is not available for streaming data sets"),
        ({"shuffle_shards": 0}, "dataset.shuffle_shards=0 must be positive"),
        ({"validation_items": 0}, "dataset.validation_items=0 must be positive"),
        ({"validation_shards": 20}, "dataset.validation_shards=20 of 20 shards"),
        ({"validation_shards": 0}, "dataset.validation_shards=0 of 20 shards"),
        ({"on_error": "ignore"}, "dataset.on_error=ignore is not known"),
        ({"crop": "left"}, "dataset.crop=left is not known"),
        ({"resolution": 0}, "dataset.resolution=0 must be positive"),
    ],
)
def test_settings_that_a_stream_cannot_have(changes, message, shards, tmp_path):
    with pytest.raises(ConfigError, match=message):
        packing.from_files(shards, tmp_path / "cache", **changes)


def test_a_folder_without_shards(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset.path=.* contains no shards \(.tar or .parquet\)"):
        packing.from_files(tmp_path, tmp_path / "cache")


@pytest.mark.slow
def test_each_shard_is_fetched_once_an_epoch(served, model, tmp_path):
    """The shards are larger than a batch; at the end of the epoch some of the next one are fetched already."""
    shards = [packing.write_tar(tmp_path / f"{i}.tar", packing.as_txt(range(12 * i, 12 * i + 12))) for i in range(9)]
    served.repositories["lab/images"] = {f"data/train-{file.name}": file.read_bytes() for file in shards}
    data = packing.from_repository("lab/images", tmp_path / "cache")
    examples = data.train.examples(model, tmp_path, 4, DRAWS)
    for start in range(0, 96, 8):
        examples.__getitems__(list(range(start, start + 8)))
        time.sleep(0.2)
        assert len(list((tmp_path / "cache" / "shards" / "lab--images").glob("*.tar"))) <= 4
    fetched = [line.rpartition("/")[2] for line in served.asked if line.startswith("GET /datasets/")]
    assert len(set(fetched)) == 9
    assert len(fetched) <= 9 + 2


@pytest.mark.slow
def test_files_are_chosen_by_patterns(served, tmp_path):
    assert len(packing.from_repository("lab/images", tmp_path).train.index.shards) == 19
    apart = packing.from_repository("lab/images", tmp_path, validation_files="*-01?.tar")
    assert len(apart.train.index.shards) == 10
    assert {text for (text,) in apart.validation.captions} == {packing.caption(i) for i in range(30, 60)}
    with pytest.raises(ConfigError, match=r"dataset.data_files=test-\* matches none of the 20 shards of lab/images"):
        packing.from_repository("lab/images", tmp_path, data_files="test-*")


def test_more_shards_are_kept_than_are_read_at_a_time(tmp_path):
    message = r"dataset.keep_shards=2 must be larger than dataset.shuffle_shards=2, .*; use 4"
    with pytest.raises(ConfigError, match=message):
        packing.from_repository("lab/images", tmp_path, keep_shards=2)
