import hashlib
import io
import json
import logging
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.runs import compose
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.config.compose import CONF
from t2i.data import datasets as loaders
from t2i.data import image_folder
from t2i.data.datasets import folder as read_folder
from t2i.data.datasets import hub, openmoji
from t2i.experiment.run import run
from t2i.plan import make_plan
from t2i.runs.folder import Run

GROUPS = {"food": 1.0, "people_tones": 0.4}
SHARED = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "shared" / "images.yaml")) | {"resolution": 16}
COLUMNS = {"name": None, "revision": None, "split": "train", "image_column": "image", "caption_column": "text"}


def test_openmoji_groups():
    data = openmoji(64, GROUPS)
    assert data.train.pixels(0).shape == (64, 64, 3)
    assert data.train.pixels(0).dtype == np.uint8
    assert set(data.train.weights) == {1.0, 0.4}
    assert not set(data.train.captions) & set(data.validation.captions)
    assert openmoji(32, GROUPS).train.fingerprint != data.train.fingerprint


def test_unknown_group_is_refused():
    with pytest.raises(
        ValueError, match=r"dataset.groups: no group vegetables in OpenMoji; there are activities, animal_faces"
    ):
        openmoji(64, {"vegetables": 1.0})
    with pytest.raises(ValueError, match=r"dataset.groups leaves no image"):
        openmoji(64, {"food": 0.0})


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """What is found out about images is kept, but not beyond a test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def folder(tmp_path):
    """An imagefolder of 60 images of random size, with captions."""
    random = np.random.default_rng(0)
    (tmp_path / "train").mkdir()
    lines = []
    for i in range(60):
        height, width = random.integers(20, 40, 2)
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / f"{i:02}.png")
        lines.append(f'{{"file_name": "{i:02}.png", "text": "image {i}"}}\n')
    (tmp_path / "train" / "metadata.jsonl").write_text("".join(lines))
    return tmp_path


def load(folder, **changes):
    return hub(str(folder), **{**COLUMNS, **SHARED, "validation_share": 0.2, **changes})


def test_a_folder_is_split_by_the_images(folder):
    data = load(folder)
    assert sorted([*data.train.captions, *data.validation.captions]) == sorted((f"image {i}",) for i in range(60))
    assert 0.05 < len(data.validation) / 60 < 0.4
    assert data.train.pixels(0).shape == (16, 16, 3)
    assert load(folder, resolution=8).train.fingerprint != data.train.fingerprint


def test_an_item_stays_on_its_side_when_the_data_set_grows(folder):
    before = load(folder)
    metadata = folder / "train" / "metadata.jsonl"
    for i in range(60, 80):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "train" / f"{i}.png")
        metadata.write_text(metadata.read_text() + f'{{"file_name": "{i}.png", "text": "image {i}"}}\n')
    after = load(folder)
    assert set(before.validation.captions) <= set(after.validation.captions)
    assert set(before.train.captions) <= set(after.train.captions)
    assert len(after.train) + len(after.validation) == 80


def test_the_validation_split_of_the_data_set_is_used(folder):
    (folder / "train").rename(folder / "validation")
    (folder / "train").mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(folder / "train" / f"{i}.png")
    lines = [f'{{"file_name": "{i}.png", "text": "dark {i}"}}\n' for i in range(3)]
    (folder / "train" / "metadata.jsonl").write_text("".join(lines))
    data = load(folder)
    assert (len(data.train), len(data.validation)) == (3, 60)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_column": "photo"}, r"dataset.image_column=photo is not in .*; its columns are image, text"),
        ({"caption_column": "caption"}, r"dataset.caption_column=caption is not in .*; its columns are image, text"),
        ({"split": "test"}, r"dataset.split=test is not in .*; it has train"),
        ({"validation_share": 1.0}, r"dataset.validation_share=1.0 is a share of the images"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        load(folder, **changes)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nowhere", r"dataset.path=./nowhere can't be loaded .*; give the id of a data set"),
        ("nobody/nothing", r"dataset.path=nobody/nothing is not on this machine, and https://huggingface.co can't be"),
    ],
)
def test_a_data_set_that_cannot_be_reached(path, message):
    with pytest.raises(ConfigError, match=message):
        load(path)


CAPTIONS = {f"{'below/' * (i % 3)}{name}": f"image {i}" for i, name in enumerate("abcdefghijklmnopqrstuvwx")}


def content(name):
    """The bytes of an image with noise of its own, taller or wider than high."""
    random = np.random.default_rng(list(name.encode()))
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (*random.integers(20, 40, 2), 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def images(folder, captions=CAPTIONS):
    """PNG files by their names without suffix."""
    for name in captions:
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(name))
    return [{"file_name": f"{name}.png", "text": caption} for name, caption in captions.items()]


def as_jsonl(folder):
    rows = images(folder)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))


def as_csv(folder):
    rows = images(folder)
    (folder / "metadata.csv").write_text("text,file_name\n" + "".join(f"{r['text']},{r['file_name']}\n" for r in rows))


def as_parquet(folder):
    pq.write_table(pa.Table.from_pylist(images(folder)), folder / "metadata.parquet")


def as_txt(folder):
    for row in images(folder):
        (folder / row["file_name"]).with_suffix(".txt").write_text(row["text"] + "\n")


def as_embedded_parquet(folder):
    """As data sets on the Hub are."""
    rows = [{"image": {"bytes": content(name), "path": None}, "text": text} for name, text in CAPTIONS.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")


def as_tars(folder):
    """As WebDataset has them: pairs of files of one name, in two shards."""
    names = sorted(CAPTIONS)
    for shard in (0, 1):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for i, name in list(enumerate(names))[shard::2]:
                for suffix, data in (("png", content(name)), ("txt", CAPTIONS[name].encode())):
                    member = tarfile.TarInfo(f"{i:04}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def load_tars(folder):
    return load(folder, image_column="png", caption_column="txt")


def local(folder, **changes):
    settings = {"caption_column": "text", "validation_share": 0.2, **SHARED, **changes}
    return read_folder(str(folder), **settings)


@pytest.mark.parametrize(
    ("write", "read"),
    [(as_jsonl, local), (as_jsonl, load), (as_csv, local), (as_parquet, local), (as_txt, local),
     (as_embedded_parquet, load), (as_tars, load_tars)],
)  # fmt: skip
def test_the_format_makes_no_difference(write, read, tmp_path):
    """Which order, which split, which pixels, and where they are cached: all from the images and captions alone."""
    (tmp_path / "given").mkdir()
    write(tmp_path / "given")
    found = read(tmp_path / "given")
    expected = sorted((hashlib.sha256(content(name)).hexdigest(), (text,)) for name, text in CAPTIONS.items())
    for split, held_out in ((found.train, False), (found.validation, True)):
        wanted = [texts for sha256, texts in expected if (int(sha256[:16], 16) / 2**64 < 0.2) == held_out]
        assert list(split.captions) == wanted
    as_jsonl(tmp_path / "reference")
    reference = local(tmp_path / "reference")
    assert found.train.fingerprint == reference.train.fingerprint
    assert found.validation.fingerprint == reference.validation.fingerprint
    assert all(np.array_equal(found.train.pixels(i), reference.train.pixels(i)) for i in range(len(found.train)))


def test_settings_of_training_leave_the_held_out_images_alone(tmp_path):
    as_txt(tmp_path)
    plain = local(tmp_path)
    changed = local(tmp_path, crop="random", crop_variants=3, flip=True, max_train_samples=4)
    assert (changed.train.views, changed.validation.views) == (6, 1)
    assert changed.train.fingerprint != plain.train.fingerprint
    assert changed.validation.fingerprint == plain.validation.fingerprint
    assert list(changed.train.captions) == list(plain.train.captions)[:4]


def test_a_image_may_have_several_captions(tmp_path):
    as_txt(tmp_path)
    (tmp_path / "a.txt").write_text("first\n\nsecond\n third \n")
    found = local(tmp_path)
    assert ("first", "second", "third") in found.train.captions
    rows = [row | {"text": [row["text"], "another"]} for row in images(tmp_path / "lists")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "lists" / "metadata.parquet")
    for read in (local, load):
        lists = read(tmp_path / "lists")
        assert {second for _, second in lists.train.captions} == {"another"}
        assert {len(texts) for texts in lists.validation.captions} == {1}


def broken(folder):
    """A folder in which 19 of 24 items are good, and what is wrong with the others."""
    rows = images(folder)
    (folder / "a.png").write_bytes(content("a")[:-400])
    (folder / "below" / "b.png").write_bytes(b"")
    rows[3]["text"], rows[4]["text"], rows[5]["text"] = None, " ", 7
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "a.png": "can't be read as an image (image file is truncated",
        "below/b.png": "is an empty file",
        "d.png": "has no caption",
        "below/e.png": "has an empty caption: ' '",
        "below/below/f.png": "has a caption that is no text: 7",
    }


def test_bad_items_stop_the_run_or_are_listed(tmp_path, caplog):
    reasons = broken(tmp_path)
    with pytest.raises(ConfigError, match=r"a.png can't be read .*\(5 of 24 items can't be used\).*on_error=skip"):
        local(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = local(tmp_path, on_error="skip")
    assert "5 of 24 items" in caplog.text
    assert len(found.train) + len(found.validation) == 19
    assert {each["item"] for each in found.skipped} == set(reasons)
    for each in found.skipped:
        assert each["reason"].startswith(reasons[each["item"]])


def test_bad_rows_of_a_data_set_are_listed_too(tmp_path):
    """Among them one that names a file of this machine instead of holding an image."""
    outside = tmp_path / "private.png"
    outside.write_bytes(content("private"))
    rows = [{"image": {"bytes": content(name), "path": None}, "text": [text]} for name, text in CAPTIONS.items()]
    rows[0]["image"] = {"bytes": None, "path": str(outside)}
    rows[1]["image"] = {"bytes": None, "path": "../private.png"}
    rows[2]["image"]["bytes"] = b"GIF89a"
    rows[3]["image"] = None
    rows[4]["text"] = []
    rows[5]["text"] = None
    (tmp_path / "given").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "given" / "part.parquet")
    found = load(tmp_path / "given", on_error="skip")
    reasons = {each["item"]: each["reason"] for each in found.skipped}
    assert list(reasons) == [f"train, row {row}" for row in range(6)]
    assert "leads out of the data set" in reasons["train, row 0"]
    assert "leads out of the data set" in reasons["train, row 1"]
    assert "can't be read" in reasons["train, row 2"] or "no image" in reasons["train, row 2"]
    assert "has no image" in reasons["train, row 3"]
    assert "empty caption" in reasons["train, row 4"]
    assert "has no caption" in reasons["train, row 5"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "left"}, "dataset.crop=left is not known; choose from center, random"),
        ({"interpolation": "cubic"}, "dataset.interpolation=cubic is not known; choose from lanczos"),
        ({"on_error": "ignore"}, "dataset.on_error=ignore is not known; choose from stop, skip"),
        ({"resolution": 0}, "dataset.resolution=0 must be positive"),
        ({"max_train_samples": 0}, "dataset.max_train_samples=0 must be positive"),
        ({"caption_column": "caption"}, "dataset.caption_column=caption is not in .*; its columns are file_name, text"),
        ({"validation_share": 0.0}, "dataset.validation_share=0.0 is a share"),
    ],
)
def test_settings_that_a_folder_cannot_have(changes, message, tmp_path):
    as_jsonl(tmp_path)
    with pytest.raises(ConfigError, match=message):
        local(tmp_path, **changes)


def test_a_folder_without_images(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset.path=.* holds no image with a caption"):
        local(tmp_path)
    with pytest.raises(ConfigError, match=r"dataset.path=.*nowhere is no folder; .* use dataset=hub"):
        local(tmp_path / "nowhere")


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


def test_nothing_is_looked_at_twice(tmp_path, monkeypatch):
    """Neither by the hub's reader nor by the folder's; what is in the cache of the first start is what counts."""
    as_jsonl(tmp_path)
    first = [read(tmp_path).train.fingerprint for read in (load, local)]
    for module in (loaders, image_folder):
        monkeypatch.setattr(module, "examine", None)
    assert [read(tmp_path).train.fingerprint for read in (load, local)] == first


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


@pytest.mark.parametrize(
    "changes",
    [
        {"resolution": 24}, {"crop": "random"}, {"crop": "random", "crop_variants": 3}, {"interpolation": "bilinear"},
        {"flip": True}, {"buckets": True, "bucket_step": 4}, {"image": "changed"},
    ],
)  # fmt: skip
def test_what_changes_a_pixel_changes_what_the_cache_is_known_by(folder, changes):
    before = load(folder).train.fingerprint
    assert load(folder).train.fingerprint == before
    if changes.pop("image", None):
        for file in (folder / "train").glob("*.png"):
            Image.open(file).point(lambda value: value ^ 1).save(file)
    assert load(folder, **changes).train.fingerprint != before
