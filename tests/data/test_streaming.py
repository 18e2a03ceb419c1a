"""Streams train as they should: each item once an epoch, the same however they are read, stopped and packed."""

import json
import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from helpers import packing
from PIL import Image
from safetensors.torch import load_file, save_file

from t2i.config import ConfigError
from t2i.data.batches import Draws
from t2i.data.latent_cache import encode
from t2i.data.loader import MicroBatches, loader
from t2i.data.samplers import StreamOrder
from t2i.data.streaming import StreamedExamples
from t2i.diffusion.timesteps import Uniform
from t2i.models.stable_diffusion import load

DRAWS = Draws(1000, Uniform(), caption_dropout=0.1, noise_offset=0.0, input_perturbation=0.0, seed=0)


@pytest.fixture
def model(small_pipeline):
    return load(str(small_pipeline))


def training_examples(shards, cache, model, **changes):
    return packing.from_files(shards, cache, **changes).train.examples(model, cache, 4, DRAWS)


def batches(examples, first_step=0, last_step=30, workers=0, size=4):
    return list(loader(examples, MicroBatches(size, size, first_step, last_step), workers))


def assert_same(ours, theirs):
    for name in ("x0", "noise", "t", "items"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert all(torch.equal(ours.text[name], theirs.text[name]) for name in theirs.text)


@pytest.mark.slow
def test_each_image_is_seen_once_an_epoch_with_its_own_caption(shards, model, tmp_path):
    data = packing.from_files(shards, tmp_path / "cache")
    examples = data.train.examples(model, tmp_path, 4, DRAWS)
    seen = [examples.__getitems__(list(range(start, start + 19))) for start in range(0, 3 * 57, 19)]
    for epoch in (seen[:3], seen[3:6], seen[6:]):
        items = [item for read in epoch for item in read.items]
        assert sorted(items) == [(shard, place) for shard in range(19) for place in range(3)]
        captions = {item: text for read in epoch for item, text in zip(read.items, read.captions, strict=True)}
        for item, text in captions.items():
            assert text in ("", *data.train.index.item(*item)[0])
    assert seen[0].items != seen[3].items


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_and_any_resume_point_give_the_same_batches(workers, shards, model, tmp_path):
    """With and without stored indices."""
    examples = training_examples(shards, tmp_path / "cache", model, crop="random", flip=True)
    whole = batches(examples)
    for start, cache in ((11, "cache"), (17, "another")):
        resumed = training_examples(shards, tmp_path / cache, model, crop="random", flip=True)
        rest = batches(resumed, start, workers=workers)
        for ours, theirs in zip(rest, whole[start:], strict=True):
            assert_same(ours, theirs)


@pytest.mark.slow
def test_latents_on_the_fly_are_those_of_the_cache(shards, model, tmp_path):
    """The same pixels and draws give the same batch, except for rounding."""
    data = packing.from_files(shards, tmp_path / "cache", validation_shards=19)
    other = packing.from_files(shards, tmp_path / "cache", validation_shards=1)
    cached = encode(data.validation, model, tmp_path / "cache")
    where = {captions: item for item, captions in enumerate(data.validation.captions)}
    batch = batches(other.train.examples(model, tmp_path, 4, DRAWS), 0, 1, size=8)[0]
    captions = [other.train.index.item(*item)[0] for item in batch.items.tolist()]
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


def test_crops_and_mirrors_are_drawn_anew_for_each_use(tmp_path, model):
    """Crops are anywhere along the longer side, and half of them are mirrored."""
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8)[None, :, None], (16, 96, 3))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    png = (tmp_path / "ramp.png").read_bytes()
    for i in (0, 1):
        packing.write_tar(tmp_path / "shards" / f"{i}.tar", {"a.png": png, "a.txt": b"a ramp"})
    views = {"crop": "random", "flip": True, "interpolation": "nearest"}
    examples = training_examples(tmp_path / "shards", tmp_path / "cache", model, **views)
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
    data = packing.from_files(tmp_path / "shards", tmp_path / "cache", caption_column="captions")
    captions = data.train.examples(model, tmp_path, 4, DRAWS).__getitems__(list(range(600))).captions
    assert {text: round(captions.count(text) / 540, 1) for text in texts["captions"]} == dict.fromkeys(
        texts["captions"], 0.3
    )
    assert abs(captions.count("") / 600 - 0.1) < 0.04
    assert data.validation.captions == [("one",)]


@pytest.mark.slow
def test_a_bad_item_is_one_line_from_a_worker_too(shards, model, tmp_path):
    """The item is found while training, and known at the next start."""
    members = packing.as_txt(range(3))
    del members["00001.txt"]
    packing.write_tar(shards / "train-000.tar", members)
    problem = r"train-000.tar: 00001 has no caption: there is no 00001.txt .*on_error=skip$"
    for workers in (0, 1):
        examples = training_examples(shards, tmp_path / str(workers), model)
        with pytest.raises(ConfigError, match=problem) as error:
            batches(examples, workers=workers)
        assert "\n" not in str(error.value)
        with pytest.raises(ConfigError, match=problem):
            packing.from_files(shards, tmp_path / str(workers))
    data = packing.from_files(shards, tmp_path / "0", on_error="skip")
    assert [each["item"] for each in data.skipped] == ["train-000.tar: 00001"]
    items = data.train.examples(model, tmp_path, 4, DRAWS).__getitems__(list(range(56))).items
    assert sorted(items) == [(shard, place) for shard in range(19) for place in range(3) if (shard, place) != (0, 2)]


def test_other_shards_settings_or_encoders_have_another_fingerprint(shards, small_pipeline, model, tmp_path):
    def fingerprint(shards=shards, model=model, **changes):
        return training_examples(shards, tmp_path / "cache", model, **changes).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(shutil.copytree(shards, tmp_path / "moved", copy_function=shutil.copy)) == first
    others = {fingerprint(flip=True), fingerprint(resolution=8), fingerprint(image_column="png")}
    file = shutil.copytree(small_pipeline, tmp_path / "other") / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight * 1.01 for name, weight in load_file(file).items()}, file)
    others.add(fingerprint(model=load(str(tmp_path / "other"))))
    packing.write_tar(shards / "train-003.tar", packing.as_txt(range(9)))
    others.add(fingerprint())
    assert len(others | {first}) == 6


@pytest.mark.parametrize("form", [pytest.param("spawn", marks=pytest.mark.slow), "fork"])
def test_examples_go_to_a_worker_without_the_model(form, shards, model, tmp_path):
    examples = training_examples(shards, tmp_path / "cache", model)
    here = examples.__getitems__([3, 4])
    with multiprocessing.get_context(form).Pool(1) as pool:
        there = pool.apply(StreamedExamples.__getitems__, (examples, [3, 4]))
    assert there.items == here.items
    assert torch.equal(there.pixels, here.pixels)
    assert isinstance(examples.order, StreamOrder)
    assert examples.model is model
