import numpy as np
import pytest
from PIL import Image

from t2i.captioned import hub, openmoji
from t2i.config import ConfigError

GROUPS = {"food": 1.0, "people_tones": 0.4}
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
    with pytest.raises(ValueError, match=r"dataset.groups leaves no picture"):
        openmoji(64, {"food": 0.0})


@pytest.fixture
def folder(tmp_path):
    """An imagefolder of 60 pictures of random size, with captions."""
    random = np.random.default_rng(0)
    (tmp_path / "train").mkdir()
    lines = []
    for i in range(60):
        height, width = random.integers(20, 40, 2)
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / f"{i:02}.png")
        lines.append(f'{{"file_name": "{i:02}.png", "text": "picture {i}"}}\n')
    (tmp_path / "train" / "metadata.jsonl").write_text("".join(lines))
    return tmp_path


def load(folder, **changes):
    return hub(str(folder), **{**COLUMNS, "resolution": 16, "validation_share": 0.2, **changes})


def test_a_folder_is_split_by_the_pictures(folder):
    data = load(folder)
    assert sorted([*data.train.captions, *data.validation.captions]) == sorted(f"picture {i}" for i in range(60))
    assert 0.05 < len(data.validation) / 60 < 0.4
    assert data.train.pixels(0).shape == (16, 16, 3)
    assert load(folder, resolution=8).train.fingerprint != data.train.fingerprint


def test_an_item_stays_on_its_side_when_the_data_set_grows(folder):
    before = load(folder)
    metadata = folder / "train" / "metadata.jsonl"
    for i in range(60, 80):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "train" / f"{i}.png")
        metadata.write_text(metadata.read_text() + f'{{"file_name": "{i}.png", "text": "picture {i}"}}\n')
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
        ({"image_column": "picture"}, r"dataset.image_column=picture is not in .*; its columns are image, text"),
        ({"caption_column": "caption"}, r"dataset.caption_column=caption is not in .*; its columns are image, text"),
        ({"split": "test"}, r"dataset.split=test is not in .*; it has train"),
        ({"validation_share": 1.0}, r"dataset.validation_share=1.0 is a share of the pictures"),
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
