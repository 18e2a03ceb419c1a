"""Runs that train on streams: stopped and resumed, with workers and processes, from files and from the Hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import packing
from helpers.runs import compose, free_port
from safetensors.torch import load_file

from t2i.data.streaming import StreamedExamples
from t2i.experiment.plan import make_plan
from t2i.experiment.run import run
from t2i.runs.folder import Run


@pytest.fixture
def train_on(small_pipeline, tmp_path):
    """Train the small model in a run of the given name; each run has a cache of its own."""

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
    """A list to which the items of each batch that is trained on are appended."""
    seen, original = [], StreamedExamples.finish

    def finish(self, read):
        batch = original(self, read)
        seen.append(batch.items.tolist())
        return batch

    monkeypatch.setattr(StreamedExamples, "finish", finish)
    return seen


@pytest.mark.slow
def test_a_fork_goes_on_with_the_items_of_its_trunk(train_on, seen, shards):
    given = ("dataset=webdataset", f"dataset.path={shards}", "dataset.crop=random", "dataset.flip=true")
    trunk = train_on("trunk", *given, steps=9)
    uninterrupted = list(seen)
    seen.clear()
    fork = train_on("fork", *given, f"from.run={trunk.folder}@5", steps=9)
    assert seen == uninterrupted[5:]
    assert_same_run(fork, trunk)


@pytest.mark.slow
def test_a_run_over_20_shards_that_is_interrupted_sees_each_item_as_the_uninterrupted_run(train_on, seen, shards):
    """Nine steps of eight images are more than an epoch; the run is stopped in the middle, and its cache is deleted."""
    given = ("dataset=webdataset", f"dataset.path={shards}", "dataset.crop=random", "dataset.flip=true")
    whole = train_on("whole", *given, steps=9)
    uninterrupted = list(seen)
    in_turn = [tuple(item) for batch in uninterrupted for item in batch]
    assert sorted(in_turn[:57]) == [(shard, place) for shard in range(19) for place in range(3)]
    seen.clear()
    paused = train_on("parts", *given, "stop_at=4", steps=9)
    assert (paused.info["state"], len(seen)) == ("paused", 4)
    shutil.rmtree(shards.parent / "cache-parts")
    resumed = train_on("parts", *given, steps=9)
    assert seen == uninterrupted
    assert_same_run(resumed, whole)
    assert whole.info["pictures"] == {"train": None, "validation": 3}
    assert whole.info["data_fingerprint"] == resumed.info["data_fingerprint"]


@pytest.mark.slow
def test_workers_change_nothing(train_on, shards):
    given = ("dataset=webdataset", f"dataset.path={shards}", "dataset.crop=random", "dataset.flip=true")
    assert_same_run(train_on("two", *given, "num_workers=2", steps=3), train_on("none", *given, steps=3))


@pytest.mark.slow
def test_images_train_to_the_same_bits_in_tar_and_in_parquet_files(train_on, shards, tmp_path):
    rows = packing.write_shards(tmp_path / "rows", "parquet", 20, 3)
    for shard in range(20):
        members = packing.as_json(range(3 * shard, 3 * shard + 3))
        packing.write_tar(tmp_path / "fields" / f"train-{shard:03}.tar", members)
    given = ("dataset=webdataset", "dataset.flip=true")
    reference = train_on("txt", *given, f"dataset.path={shards}")
    for other in (rows, tmp_path / "fields"):
        found = train_on(other.name, *given, f"dataset.path={other}", "dataset.caption_column=text")
        assert_same_run(found, reference)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_of_the_hub_trains_like_its_shards_and_few_are_on_the_disk(workers, train_on, served, shards, tmp_path):
    given = ("dataset=stream", "dataset.path=lab/images", "dataset.caption_column=txt", "dataset.keep_shards=3")
    streamed = train_on("hub", *given, f"num_workers={workers}", steps=4)
    assert_same_run(streamed, train_on("files", "dataset=webdataset", f"dataset.path={shards}", steps=4))
    left = list((tmp_path / "cache-hub" / "shards" / "lab--images").glob("*.tar"))
    assert 0 < len(left) <= 3


@pytest.mark.slow
def test_more_room_or_another_cache_is_no_other_run(train_on, served):
    given = ("dataset=stream", "dataset.path=lab/images", "dataset.caption_column=txt")
    assert train_on("run", *given, "stop_at=1", steps=2).info["state"] == "paused"
    assert train_on("run", *given, "dataset.keep_shards=9", steps=2).finished


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_train_as_one_does(small_pipeline, shards, tmp_path):
    """Each process reads its part of a step."""
    settings = ["experiment=smoke", f"model.path={small_pipeline}", "dataset=webdataset", "model=tiny", "threads=1"]
    settings += [f"dataset.path={shards}", "dataset.resolution=64", "sample_every=0", "micro_batch_size=4"]
    variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MASTER_PORT": free_port()}
    launcher = [Path(sys.executable).parent / "accelerate", "launch", "--multi_gpu", "--num_processes", "2"]
    for name, program in (("one", [sys.executable]), ("two", launcher)):
        own = [f"run={name}", f"cache_dir={tmp_path}/{name}", "num_workers=1"]
        command = [*program, "-m", "t2i.train", *settings, *own]
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
