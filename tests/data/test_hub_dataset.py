"""Data sets of the Hub and folders that `datasets` reads: their splits, columns and rows."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.image_folders import CAPTIONS, content, from_hub
from PIL import Image

from t2i.config import ConfigError


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


def test_a_folder_is_split_by_the_images(folder):
    data = from_hub(folder)
    assert sorted([*data.train.captions, *data.validation.captions]) == sorted((f"image {i}",) for i in range(60))
    assert 0.05 < len(data.validation) / 60 < 0.4
    assert data.train.pixels(0).shape == (16, 16, 3)
    assert from_hub(folder, resolution=8).train.fingerprint != data.train.fingerprint


def test_an_item_stays_on_its_side_when_the_data_set_grows(folder):
    before = from_hub(folder)
    metadata = folder / "train" / "metadata.jsonl"
    for i in range(60, 80):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "train" / f"{i}.png")
        metadata.write_text(metadata.read_text() + f'{{"file_name": "{i}.png", "text": "image {i}"}}\n')
    after = from_hub(folder)
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
    data = from_hub(folder)
    assert (len(data.train), len(data.validation)) == (3, 60)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_column": "photo"}, r"dataset.image_column=photo is not in .*; its columns are image, text"),
        ({"caption_column": "caption"}, r"dataset.caption_column=caption is not in .*; its columns are image, text"),
        ({"split": "test"}, r"dataset.split=test is not in .*; its splits are train"),
        ({"validation_share": 1.0}, r"dataset.validation_share=1.0 must be a fraction of the images, between 0 and 1"),
    ],
)
def test_what_is_missing_is_named_with_what_is_there(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        from_hub(folder, **changes)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nowhere", r"dataset.path=./nowhere can't be loaded .*; give the id of an accessible data set or a folder"),
        ("nobody/nothing", r"dataset.path=nobody/nothing is not on this machine, and https://huggingface.co can't be"),
    ],
)
def test_a_data_set_that_cannot_be_reached(path, message):
    with pytest.raises(ConfigError, match=message):
        from_hub(path)


def test_bad_rows_of_a_data_set_are_listed_too(tmp_path):
    """Some name a file on this machine instead of containing an image."""
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
    found = from_hub(tmp_path / "given", on_error="skip")
    reasons = {each["item"]: each["reason"] for each in found.skipped}
    assert list(reasons) == [f"train, row {row}" for row in range(6)]
    assert "points outside the data set" in reasons["train, row 0"]
    assert "points outside the data set" in reasons["train, row 1"]
    assert "can't be read" in reasons["train, row 2"] or "is not an image" in reasons["train, row 2"]
    assert "has no image" in reasons["train, row 3"]
    assert "empty caption" in reasons["train, row 4"]
    assert "has no caption" in reasons["train, row 5"]
