"""Sets in shards train as they should: each item once an epoch, the same however they are read, stopped and packed."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import hub_server, packing
from helpers.runs import compose, free_port
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from t2i.config import ConfigError
from t2i.config.compose import CONF
from t2i.data.batches import Draws
from t2i.data.latent_cache import encode
from t2i.data.loader import MicroBatches, loader
from t2i.data.samplers import StreamOrder
from t2i.data.streaming import StreamedExamples, hub, webdataset
from t2i.diffusion.timesteps import Uniform
from t2i.encode import main as fill_cache
from t2i.experiment.run import run
from t2i.models.stable_diffusion import load
from t2i.plan import make_plan
from t2i.runs.folder import Run

SHARED = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "shared" / "shards.yaml")) | {"resolution": 16}
DRAWS = Draws(1000, Uniform(), caption_dropout=0.1, noise_offset=0.0, input_perturbation=0.0, seed=0)


def stream(folder, cache, **changes):
    settings = {"caption_column": "txt", **SHARED, "cache_dir": str(cache), **changes}
    return webdataset(str(folder), **settings)


@pytest.fixture
def folder(tmp_path):
    """20 shards of 3 images; the last is held out."""
    return packing.write_shards(tmp_path / "shards", "tar", 20, 3)


@pytest.fixture
def model(small_pipeline):
    return load(str(small_pipeline))


def batches(examples, first_step=0, last_step=30, workers=0, size=4):
    return list(loader(examples, MicroBatches(size, size, first_step, last_step), workers))


def assert_same(ours, theirs):
    for name in ("x0", "noise", "t", "items"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert all(torch.equal(ours.text[name], theirs.text[name]) for name in theirs.text)


def test_a_stream_and_what_is_held_out(folder, tmp_path):
    data = stream(folder, tmp_path / "cache")
    assert data.train.images is None  # nobody has looked yet
    assert sorted(data.validation.captions) == [(packing.caption(i),) for i in (57, 58, 59)]
    assert data.validation.pixels(0).shape == (16, 16, 3)
    for shard in range(19):
        data.train.catalogue.count(shard)
    assert stream(folder, tmp_path / "cache").train.images == 57
    (folder / "validation").mkdir()
    (folder / "train-005.tar").rename(folder / "validation" / "train-005.tar")
    apart = stream(folder, tmp_path / "cache", validation_items=2)
    assert len(apart.train.catalogue.shards) == 19
    assert set(apart.validation.captions) < {(packing.caption(i),) for i in (15, 16, 17)}
    assert len(apart.validation) == 2


def test_each_image_is_seen_once_an_epoch_with_its_own_caption(folder, model, tmp_path):
    data = stream(folder, tmp_path / "cache")
    examples = data.train.examples(model, tmp_path, 4, DRAWS)
    seen = [examples.__getitems__(list(range(start, start + 19))) for start in range(0, 3 * 57, 19)]
    for epoch in (seen[:3], seen[3:6], seen[6:]):
        items = [item for read in epoch for item in read.items]
        assert sorted(items) == [(shard, place) for shard in range(19) for place in range(3)]
        captions = {item: text for read in epoch for item, text in zip(read.items, read.captions, strict=True)}
        for item, text in captions.items():
            assert text in ("", *data.train.catalogue.item(*item)[0])
    assert seen[0].items != seen[3].items


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_and_any_resume_point_give_the_same_batches(workers, folder, model, tmp_path):
    """With the index cache, and without."""
    examples = stream(folder, tmp_path / "cache", crop="random", flip=True).train.examples(model, tmp_path, 4, DRAWS)
    whole = batches(examples)
    for start, cache in ((11, "cache"), (17, "another")):
        data = stream(folder, tmp_path / cache, crop="random", flip=True)
        rest = batches(data.train.examples(model, tmp_path, 4, DRAWS), start, workers=workers)
        for ours, theirs in zip(rest, whole[start:], strict=True):
            assert_same(ours, theirs)


def test_latents_on_the_fly_are_those_of_the_cache(folder, model, tmp_path):
    """The whole of a training example: same pixels, same draws, so the same batch, but for rounding."""
    data = stream(folder, tmp_path / "cache", validation_shards=19)
    other = stream(folder, tmp_path / "cache", validation_shards=1)
    cached = encode(data.validation, model, tmp_path / "cache")
    where = {captions: item for item, captions in enumerate(data.validation.captions)}
    batch = batches(other.train.examples(model, tmp_path, 4, DRAWS), 0, 1, size=8)[0]
    captions = [other.train.catalogue.item(*item)[0] for item in batch.items.tolist()]
    trained = [place for place, texts in enumerate(captions) if texts in where]
    assert len(trained) > 5
    numbers = [where[captions[place]] for place in trained]
    mean, std = cached.moments(numbers)
    posterior = DRAWS.draw(trained, "posterior", "standard_normal", size=mean.shape[1:], dtype=np.float32)
    assert np.allclose(batch.x0[trained], mean + std * posterior, atol=1e-4)
    kept = [None if drop else item for item, drop in zip(numbers, DRAWS.dropped(trained), strict=True)]
    assert torch.allclose(
        batch.text["encoder_hidden_states"][trained], cached.text(kept)["encoder_hidden_states"], atol=1e-4
    )


def test_only_what_is_held_out_is_encoded_ahead(folder, small_pipeline, tmp_path, capsys):
    given = [f"dataset.path={folder}", f"model.path={small_pipeline}", f"cache_dir={tmp_path}/cache"]
    fill_cache(["dataset=webdataset", "model=tiny", "dataset.resolution=64", *given])
    said = capsys.readouterr().out
    assert "train: streamed" in said
    assert "validation: 3 images" in said


def test_crops_and_mirrors_are_drawn_anew_for_each_use(tmp_path, model):
    """Anywhere along the longer side, and mirrored half of the time."""
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8)[None, :, None], (16, 96, 3))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    png = (tmp_path / "ramp.png").read_bytes()
    for i in (0, 1):
        packing.write_tar(tmp_path / "shards" / f"{i}.tar", {"a.png": png, "a.txt": b"a ramp"})
    data = stream(tmp_path / "shards", tmp_path / "cache", crop="random", flip=True, interpolation="nearest")
    examples = data.train.examples(model, tmp_path, 4, DRAWS)
    pixels = examples.__getitems__(list(range(400))).pixels.float()
    mirrored = pixels[:, 0, 0, 0] > pixels[:, 0, -1, 0]
    assert abs(mirrored.float().mean() - 0.5) < 0.1
    left = pixels[:, 0, :, 0].min(1).values
    assert len(left.unique()) > 60
    assert abs(left.mean() / 80 - 0.5) < 0.05


def test_several_captions_are_drawn_for_each_use(tmp_path, model):
    texts = {"captions": ["one", "two", "three"]}
    for i in (0, 1):
        members = {"a.png": packing.image(i), "a.json": json.dumps(texts).encode()}
        packing.write_tar(tmp_path / "shards" / f"{i}.tar", members)
    data = stream(tmp_path / "shards", tmp_path / "cache", caption_column="captions")
    captions = data.train.examples(model, tmp_path, 4, DRAWS).__getitems__(list(range(600))).captions
    assert {text: round(captions.count(text) / 540, 1) for text in texts["captions"]} == dict.fromkeys(
        texts["captions"], 0.3
    )
    assert abs(captions.count("") / 600 - 0.1) < 0.04
    assert data.validation.captions == [("one",)]


def test_a_bad_item_is_one_line_from_a_worker_too(folder, model, tmp_path):
    """Found while training; at the next start it is known at once."""
    members = packing.as_txt(range(3))
    del members["00001.txt"]
    packing.write_tar(folder / "train-000.tar", members)
    problem = r"train-000.tar: 00001 has no caption: no 00001.txt .*on_error=skip$"
    for workers in (0, 1):
        examples = stream(folder, tmp_path / str(workers)).train.examples(model, tmp_path, 4, DRAWS)
        with pytest.raises(ConfigError, match=problem) as error:
            batches(examples, workers=workers)
        assert "\n" not in str(error.value)
        with pytest.raises(ConfigError, match=problem):
            stream(folder, tmp_path / str(workers))
    data = stream(folder, tmp_path / "0", on_error="skip")
    assert [each["item"] for each in data.skipped] == ["train-000.tar: 00001"]
    items = data.train.examples(model, tmp_path, 4, DRAWS).__getitems__(list(range(56))).items
    assert sorted(items) == [(shard, place) for shard in range(19) for place in range(3) if (shard, place) != (0, 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": True}, "dataset.buckets=true needs all images beforehand"),
        ({"shuffle_shards": 0}, "dataset.shuffle_shards=0 must be positive"),
        ({"validation_items": 0}, "dataset.validation_items=0 must be positive"),
        ({"validation_shards": 20}, "dataset.validation_shards=20 of 20 shards"),
        ({"validation_shards": 0}, "dataset.validation_shards=0 of 20 shards"),
        ({"on_error": "ignore"}, "dataset.on_error=ignore is not known"),
        ({"crop": "left"}, "dataset.crop=left is not known"),
        ({"resolution": 0}, "dataset.resolution=0 must be positive"),
    ],
)
def test_settings_that_a_stream_cannot_have(changes, message, folder, tmp_path):
    with pytest.raises(ConfigError, match=message):
        stream(folder, tmp_path / "cache", **changes)


def test_a_folder_without_shards(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset.path=.* holds no shard \(.tar or .parquet\)"):
        stream(tmp_path, tmp_path / "cache")


def test_other_shards_settings_or_encoders_are_another_set(folder, small_pipeline, model, tmp_path):
    def fingerprint(**changes):
        return stream(folder, tmp_path / "cache", **changes).train.examples(model, tmp_path, 4, DRAWS).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    moved = shutil.copytree(folder, tmp_path / "moved", copy_function=shutil.copy)
    assert stream(moved, tmp_path / "cache").train.examples(model, tmp_path, 4, DRAWS).fingerprint == first
    others = {fingerprint(flip=True), fingerprint(resolution=8), fingerprint(image_column="png")}
    file = shutil.copytree(small_pipeline, tmp_path / "other") / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight * 1.01 for name, weight in load_file(file).items()}, file)
    others.add(
        stream(folder, tmp_path / "cache").train.examples(load(str(tmp_path / "other")), tmp_path, 4, DRAWS).fingerprint
    )
    packing.write_tar(folder / "train-003.tar", packing.as_txt(range(9)))
    others.add(fingerprint())
    assert len(others | {first}) == 6


@pytest.fixture
def train_on(small_pipeline, tmp_path):
    """Train the small model on shards of a folder in a run of some name; each run has a cache of its own."""

    def train_on(name, *overrides, steps=8):
        short = ["experiment=smoke", "model=tiny", f"model.path={small_pipeline}", f"cache_dir={tmp_path}/cache-{name}"]
        short += ["sample_every=0", f"steps={steps}", "validate_every=0", "dataset.resolution=64"]
        cfg = compose(*short, *overrides)
        run(cfg, make_plan(cfg), tmp_path / f"run-{name}", list(overrides))
        return Run(tmp_path / f"run-{name}", cfg)

    return train_on


def weights(run):
    return load_file(run.folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def assert_same_run(first, second):
    ours, theirs = weights(first), weights(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [[line.get("train/loss") for line in run.metrics()] for run in (first, second)]
    assert losses[0] == losses[1]
    assert first.info["battery"]["hash"] == second.info["battery"]["hash"]


@pytest.fixture
def seen(monkeypatch):
    """The items that were trained on since it was emptied."""
    seen, original = [], StreamedExamples.finish

    def finish(self, read):
        batch = original(self, read)
        seen.append(batch.items.tolist())
        return batch

    monkeypatch.setattr(StreamedExamples, "finish", finish)
    return seen


def test_a_run_over_20_shards_that_is_interrupted_sees_each_item_as_the_uninterrupted_run(train_on, seen, folder):
    """Nine steps of eight, more than an epoch; stopped in the middle, and the index cache lost on the way."""
    given = ("dataset=webdataset", f"dataset.path={folder}", "dataset.crop=random", "dataset.flip=true")
    whole = train_on("whole", *given, steps=9)
    uninterrupted = list(seen)
    in_turn = [tuple(item) for batch in uninterrupted for item in batch]
    assert sorted(in_turn[:57]) == [(shard, place) for shard in range(19) for place in range(3)]
    seen.clear()
    paused = train_on("parts", *given, "stop_at=4", steps=9)
    assert (paused.info["state"], len(seen)) == ("paused", 4)
    shutil.rmtree(folder.parent / "cache-parts")
    resumed = train_on("parts", *given, steps=9)
    assert seen == uninterrupted
    assert_same_run(resumed, whole)
    assert whole.info["pictures"] == {"train": None, "validation": 3}
    assert whole.info["data_fingerprint"] == resumed.info["data_fingerprint"]


def test_workers_change_nothing(train_on, folder):
    given = ("dataset=webdataset", f"dataset.path={folder}", "dataset.crop=random", "dataset.flip=true")
    assert_same_run(train_on("two", *given, "num_workers=2", steps=3), train_on("none", *given, steps=3))


@pytest.mark.slow
def test_images_train_to_the_same_bits_in_tar_and_in_parquet_files(train_on, folder, tmp_path):
    rows = packing.write_shards(tmp_path / "rows", "parquet", 20, 3)
    for shard in range(20):
        members = packing.as_json(range(3 * shard, 3 * shard + 3))
        packing.write_tar(tmp_path / "fields" / f"train-{shard:03}.tar", members)
    given = ("dataset=webdataset", "dataset.flip=true")
    reference = train_on("txt", *given, f"dataset.path={folder}")
    for other in (rows, tmp_path / "fields"):
        found = train_on(other.name, *given, f"dataset.path={other}", "dataset.caption_column=text")
        assert_same_run(found, reference)


@pytest.fixture
def served(monkeypatch, folder):
    """The same shards on a stand-in for the Hub."""
    with hub_server.asked_instead(monkeypatch) as hub:
        hub.repositories["lab/images"] = {f"data/{file.name}": file.read_bytes() for file in folder.iterdir()}
        yield hub


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_set_of_the_hub_trains_like_its_shards_and_few_are_on_the_disk(workers, train_on, served, folder, tmp_path):
    given = ("dataset=stream", "dataset.path=lab/images", "dataset.caption_column=txt", "dataset.keep_shards=3")
    streamed = train_on("hub", *given, f"num_workers={workers}", steps=4)
    assert_same_run(streamed, train_on("files", "dataset=webdataset", f"dataset.path={folder}", steps=4))
    left = list((tmp_path / "cache-hub" / "shards" / "lab--images").glob("*.tar"))
    assert 0 < len(left) <= 3


def test_each_shard_is_fetched_once_an_epoch(served, model, tmp_path):
    """With shards that are larger than a batch, and some of the next epoch's fetched already at its end."""
    numbers = [range(12 * shard, 12 * shard + 12) for shard in range(9)]
    served.repositories["lab/images"] = {
        packing.write_tar(tmp_path / f"train-{i}.tar", packing.as_txt(each)).name: (
            tmp_path / f"train-{i}.tar"
        ).read_bytes()
        for i, each in enumerate(numbers)
    }
    settings = {
        "revision": None,
        "data_files": "*",
        "validation_files": None,
        "caption_column": "txt",
        "keep_shards": 4,
    }
    data = hub("lab/images", **settings, **SHARED | {"cache_dir": str(tmp_path / "cache")})
    examples = data.train.examples(model, tmp_path, 4, DRAWS)
    for start in range(0, 96, 8):
        examples.__getitems__(list(range(start, start + 8)))
        time.sleep(0.2)
        assert len(list((tmp_path / "cache" / "shards" / "lab--images").glob("*.tar"))) <= 4
    fetched = [line.rpartition("/")[2] for line in served.asked if line.startswith("GET /datasets/")]
    assert len(set(fetched)) == 9
    assert len(fetched) <= 9 + 2


def test_what_is_asked_of_the_hub_and_is_not_there(served, tmp_path):
    settings = {"revision": None, "data_files": "data/train-*", "validation_files": None, "caption_column": "txt"}
    settings |= {"keep_shards": 4, **SHARED, "cache_dir": str(tmp_path)}
    assert len(hub("lab/images", **settings).train.catalogue.shards) == 19
    apart = hub("lab/images", **settings | {"validation_files": "*-01?.tar"})
    assert len(apart.train.catalogue.shards) == 10
    assert {text for (text,) in apart.validation.captions} == {packing.caption(i) for i in range(30, 60)}
    with pytest.raises(ConfigError, match=r"dataset.data_files=test-\* fits none of the 20 shards of lab/images, such"):
        hub("lab/images", **settings | {"data_files": "test-*"})
    with pytest.raises(ConfigError, match=r"dataset.keep_shards=2 leaves no room .* dataset.shuffle_shards=2 .*; 4 do"):
        hub("lab/images", **settings | {"keep_shards": 2})


def test_more_room_or_another_cache_is_no_other_run(train_on, served):
    given = ("dataset=stream", "dataset.path=lab/images", "dataset.caption_column=txt")
    assert train_on("run", *given, "stop_at=1", steps=2).info["state"] == "paused"
    assert train_on("run", *given, "dataset.keep_shards=9", steps=2).finished


@pytest.mark.parametrize("form", [pytest.param("spawn", marks=pytest.mark.slow), "fork"])
def test_examples_go_to_a_worker_without_the_model(form, folder, model, tmp_path):
    examples = stream(folder, tmp_path / "cache").train.examples(model, tmp_path, 4, DRAWS)
    here = examples.__getitems__([3, 4])
    with multiprocessing.get_context(form).Pool(1) as pool:
        there = pool.apply(StreamedExamples.__getitems__, (examples, [3, 4]))
    assert there.items == here.items
    assert torch.equal(there.pixels, here.pixels)
    assert isinstance(examples.order, StreamOrder)
    assert examples.model is model


@pytest.mark.slow
def test_two_processes_train_as_one_does(small_pipeline, folder, tmp_path):
    """Each reads its part of a step; together they look at each shard once."""
    settings = ["experiment=smoke", f"model.path={small_pipeline}", "dataset=webdataset", "model=tiny", "threads=1"]
    settings += [f"dataset.path={folder}", "dataset.resolution=64", "sample_every=0", "micro_batch_size=4"]
    variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MASTER_PORT": free_port()}
    launcher = [Path(sys.executable).parent / "accelerate", "launch", "--multi_gpu", "--num_processes", "2"]
    for name, program in (("one", [sys.executable]), ("two", launcher)):
        command = [
            *program,
            "-m",
            "t2i.train",
            *settings,
            f"run={name}",
            f"cache_dir={tmp_path}/{name}",
            "num_workers=1",
        ]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (
        [json.loads(line) for line in (tmp_path / "multirun" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 11
    for alone, shared in zip(one[1:], two[1:], strict=True):
        assert shared["train/loss"] == pytest.approx(alone["train/loss"], rel=1e-4)
    assert two[-1]["val/loss"] == pytest.approx(one[-1]["val/loss"], rel=1e-4)
