"""What holds for every data set with a cache: the same in any format, and trained to the same bits."""

import hashlib
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.image_folders import (
    CAPTIONS,
    as_csv,
    as_embedded_parquet,
    as_jsonl,
    as_parquet,
    as_tars,
    as_txt,
    content,
    from_folder,
    from_hub,
    from_tars,
    write_images,
)
from helpers.runs import compose
from PIL import Image
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.config.instantiate import check_signature
from t2i.experiment.plan import make_plan
from t2i.experiment.run import run
from t2i.runs.folder import Run


@pytest.mark.parametrize("option", ["folder", "hub", "webdataset", "stream", "openmoji"])
def test_unknown_settings_are_refused_with_the_known_ones(option):
    cfg = compose(f"dataset={option}", "++dataset.path=/nowhere", "+dataset.resolutoin=64")
    with pytest.raises(ConfigError, match=r"dataset: .* takes no such setting .*; it takes .*resolution"):
        check_signature(cfg, "dataset")


FORMATS = [
    (as_jsonl, from_folder),
    (as_jsonl, from_hub),
    (as_csv, from_folder),
    (as_parquet, from_folder),
    (as_txt, from_folder),
    (as_embedded_parquet, from_hub),
    (as_tars, from_tars),
]


@pytest.mark.parametrize(("write", "read"), FORMATS)
def test_the_format_makes_no_difference(write, read, tmp_path):
    """Order, split, pixels and fingerprint depend on the images and captions alone."""
    (tmp_path / "given").mkdir()
    write(tmp_path / "given")
    found = read(tmp_path / "given")
    expected = sorted((hashlib.sha256(content(name)).hexdigest(), (text,)) for name, text in CAPTIONS.items())
    for split, held_out in ((found.train, False), (found.validation, True)):
        wanted = [texts for sha256, texts in expected if (int(sha256[:16], 16) / 2**64 < 0.2) == held_out]
        assert list(split.captions) == wanted
    as_jsonl(tmp_path / "reference")
    reference = from_folder(tmp_path / "reference")
    assert found.train.fingerprint == reference.train.fingerprint
    assert found.validation.fingerprint == reference.validation.fingerprint
    assert all(np.array_equal(found.train.pixels(i), reference.train.pixels(i)) for i in range(len(found.train)))


def test_settings_of_training_do_not_change_the_held_out_images(tmp_path):
    as_txt(tmp_path)
    plain = from_folder(tmp_path)
    changed = from_folder(tmp_path, crop="random", crop_variants=3, flip=True, max_train_samples=4)
    assert (changed.train.views, changed.validation.views) == (6, 1)
    assert changed.train.fingerprint != plain.train.fingerprint
    assert changed.validation.fingerprint == plain.validation.fingerprint
    assert list(changed.train.captions) == list(plain.train.captions)[:4]


def test_an_image_may_have_several_captions(tmp_path):
    as_txt(tmp_path)
    (tmp_path / "a.txt").write_text("first\n\nsecond\n third \n")
    found = from_folder(tmp_path)
    assert ("first", "second", "third") in found.train.captions
    rows = [row | {"text": [row["text"], "another"]} for row in write_images(tmp_path / "lists")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "lists" / "metadata.parquet")
    for read in (from_folder, from_hub):
        lists = read(tmp_path / "lists")
        assert {second for _, second in lists.train.captions} == {"another"}
        assert {len(texts) for texts in lists.validation.captions} == {1}


CHANGES = [
    {"resolution": 24},
    {"crop": "random"},
    {"crop": "random", "crop_variants": 3},
    {"interpolation": "bilinear"},
    {"flip": True},
    {"buckets": True, "bucket_step": 4},
    {"image": "changed"},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_what_changes_a_pixel_changes_the_fingerprint(changes, tmp_path):
    as_jsonl(tmp_path)
    before = from_hub(tmp_path).train.fingerprint
    assert from_hub(tmp_path).train.fingerprint == before
    if "image" in changes:
        for file in tmp_path.rglob("*.png"):
            Image.open(file).point(lambda value: value ^ 1).save(file)
    settings = {name: value for name, value in changes.items() if name != "image"}
    assert from_hub(tmp_path, **settings).train.fingerprint != before


@pytest.mark.parametrize("read", [from_folder, from_hub])
def test_images_of_equal_size_and_modification_time_are_other_images(read, tmp_path):
    """As an archive that is unpacked, or a copy with its times, leaves them: once in place, and once renamed."""

    def write(file, number):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "bmp")

    as_jsonl(tmp_path)
    file, new = tmp_path / "a.png", tmp_path / "new"
    write(file, 0)
    seen = [read(tmp_path).train.fingerprint]
    assert read(tmp_path).train.fingerprint == seen[0]
    for number, place in ((1, file), (2, new)):
        stat = file.stat()
        write(place, number)
        os.utime(place, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        place.replace(file)
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        seen.append(read(tmp_path).train.fingerprint + read(tmp_path).validation.fingerprint)
    assert len({*seen}) == 3


@pytest.mark.parametrize("read", [from_folder, from_hub])
def test_an_image_that_changes_while_it_is_in_use_is_not_encoded_under_the_name_of_the_other(read, tmp_path):
    as_jsonl(tmp_path)
    train = read(tmp_path).train
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(content("another"))
    with pytest.raises(ConfigError, match="has changed while it was in use"):
        train.pixels(0)


@pytest.fixture
def train_on(small_pipeline, tmp_path):
    """Train the small model for three steps on images in a folder, nothing cached; returns the run."""

    def train_on(folder, *overrides):
        settings = ["experiment=smoke", "steps=3", "sample_every=0", "save_every=3", "dataset.validation_share=0.2"]
        own = [f"model.path={small_pipeline}", f"dataset.path={folder}", f"cache_dir={folder}-cache"]
        cfg = compose(*settings, *overrides, *own, "dataset.resolution=64")
        run(cfg, make_plan(cfg), folder.with_name(f"{folder.name}-run"), list(overrides))
        return Run(folder.with_name(f"{folder.name}-run"), cfg)

    return train_on


@pytest.mark.slow
def test_the_format_makes_no_difference_to_a_bit_of_training(train_on, tmp_path):
    views = ("dataset.crop=random", "dataset.crop_variants=2", "dataset.flip=true")
    runs = []
    for write, dataset in ((as_txt, "folder"), (as_embedded_parquet, "hub")):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder)
        runs.append(train_on(folder, f"dataset={dataset}", "model=tiny", *views))
    ours, theirs = (load_file(run.folder / "model" / "unet" / "diffusion_pytorch_model.safetensors") for run in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len({run.info["battery"]["hash"] for run in runs}) == 1


@pytest.mark.slow
def test_buckets_train_the_same_in_any_micro_batches(train_on, tmp_path):
    losses = []
    for size in (4, 8):
        folder = tmp_path / str(size)
        folder.mkdir()
        as_txt(folder)
        buckets = ("dataset.buckets=true", "dataset.bucket_step=16", "batch_size=8", f"micro_batch_size={size}")
        run = train_on(folder, "dataset=folder", "model=tiny", *buckets)
        losses.append([line["train/loss"] for line in run.metrics() if "train/loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])
def test_a_format_trains(write, train_on, tmp_path):
    (tmp_path / "given").mkdir()
    write(tmp_path / "given")
    image = tmp_path / "given" / "broken.png"
    image.write_bytes(b"")
    info = train_on(tmp_path / "given", "dataset=folder", "model=tiny", "dataset.on_error=skip").info
    assert info["state"] == "finished"
    assert info["pictures"]["train"] + info["pictures"]["validation"] == 24
    assert info["skipped"] == [{"item": "broken.png", "reason": "has no caption in a metadata file"}]
