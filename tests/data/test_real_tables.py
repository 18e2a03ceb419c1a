"""Tables of images as people have them: saved by `datasets`, with files in odd folders, or images in odd columns."""

import base64
import logging
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.image_folders import CAPTIONS, as_jsonl, content, from_hub

from t2i.config import ConfigError
from t2i.data.image_values import content_of
from t2i.data.splits import Captioned

NAMES = sorted(CAPTIONS)[:8]


def table(file, names=NAMES, image=lambda name: {"bytes": content(name), "path": None}):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{"image": image(name), "text": CAPTIONS[name]} for name in names]), file)


def captions(data: Captioned):
    return sorted(text for part in (data.train, data.validation) for (text,) in part.captions)


def expected(names=NAMES):
    return sorted(CAPTIONS[name] for name in names)


@pytest.mark.parametrize(
    "image",
    [
        lambda name: base64.b64encode(content(name)).decode(),
        lambda name: f"data:image/png;base64,{base64.b64encode(content(name)).decode()}",
        lambda name: list(content(name)),
        content,
    ],
    ids=["base64", "data address", "list of bytes", "bytes"],
)
def test_images_in_other_columns_are_the_same_images(image, tmp_path):
    table(tmp_path / "own" / "a.parquet")
    table(tmp_path / "other" / "a.parquet", image=image)
    own, other = from_hub(tmp_path / "own"), from_hub(tmp_path / "other")
    assert (other.train.fingerprint, other.validation.fingerprint) == (
        own.train.fingerprint,
        own.validation.fingerprint,
    )
    assert (other.train.pixels(0) == own.train.pixels(0)).all()


def test_addresses_on_the_web_are_refused_shortly(tmp_path):
    table(tmp_path / "a.parquet", image=lambda name: f"https://example.org/{name * 500}.png")
    with pytest.raises(
        ConfigError, match=r"row 0 names an address on the web, which is not fetched .*img2dataset"
    ) as no:
        from_hub(tmp_path)
    assert len(str(no.value)) < 600


def test_paths_in_a_column_of_texts_start_at_the_data_set(tmp_path):
    assert content_of("pics/a.png", str(tmp_path)) == (None, str(tmp_path / "pics" / "a.png"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["[artist] shards", "a*b", "ä ö", "what?"])
def test_names_of_folders_are_not_taken_for_patterns(name, tmp_path):
    (tmp_path / name).mkdir()
    as_jsonl(tmp_path / name)
    assert captions(from_hub(tmp_path / name)) == expected(CAPTIONS)
    (tmp_path / name / "a.png").unlink()
    with pytest.raises(ConfigError, match=r"a\.png"):
        from_hub(tmp_path / name)


def test_the_home_folder_can_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    table(tmp_path / "pics" / "a.parquet")
    assert captions(from_hub("~/pics")) == expected()


def saved(folder):
    rows = [{"image": {"bytes": content(name), "path": None}, "text": CAPTIONS[name]} for name in NAMES]
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


@pytest.mark.parametrize("several", [False, True])
def test_what_save_to_disk_wrote_is_read(several, tmp_path):
    rows = saved(tmp_path)
    (datasets.DatasetDict({"train": rows}) if several else rows).save_to_disk(tmp_path / "saved")
    before = sorted(tmp_path.rglob("*"))
    assert captions(from_hub(tmp_path / "saved")) == expected()
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written into the user's folder


def test_a_saved_data_set_does_not_lead_elsewhere(tmp_path):
    saved(tmp_path).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved").joinpath("data-00000-of-00001.arrow").rename(tmp_path / "elsewhere.arrow")
    state = tmp_path / "saved" / "state.json"
    state.write_text(state.read_text().replace("data-00000-of-00001.arrow", "../elsewhere.arrow"))
    with pytest.raises(ConfigError, match=r"elsewhere\.arrow lies outside the data set"):
        from_hub(tmp_path / "saved")


def test_a_test_split_alone_and_parts_of_splits_are_trained_on(tmp_path, caplog):
    table(tmp_path / "test" / "a.parquet")
    assert captions(from_hub(tmp_path, validation_share=0)) == expected()
    assert "has no split train; its only split, test, is trained on" in caplog.text
    assert captions(from_hub(tmp_path, split="test[:50%]", validation_share=0)) == expected(NAMES[:4])
    with pytest.raises(ConfigError, match=r"dataset\.split=train\[:x\] is not in .*; its splits are test"):
        from_hub(tmp_path, split="train[:x]")


def test_files_in_no_split_are_named(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for name in ("train", "test", "extra"):
        table(tmp_path / name / "a.parquet")
    assert captions(from_hub(tmp_path)) == expected()
    assert "1 are used (train/a.parquet)" in caplog.text
    assert "1 in split test (test/a.parquet), 1 in no split (extra/a.parquet)" in caplog.text


def test_an_image_called_like_a_split_does_not_hide_the_others(tmp_path):
    as_jsonl(tmp_path)
    (tmp_path / "a.png").rename(tmp_path / "test_3.png")
    (tmp_path / "metadata.jsonl").write_text(
        (tmp_path / "metadata.jsonl").read_text().replace('"a.png"', '"test_3.png"')
    )
    with pytest.raises(ConfigError, match=r"takes test_3\.png for the split test .*; rename it, or use dataset=folder"):
        from_hub(tmp_path)


def test_a_table_that_is_replaced_by_one_of_equal_size_and_time_is_read_again(tmp_path):
    file = tmp_path / "a.parquet"
    table(file)
    stat = file.stat()
    assert captions(from_hub(tmp_path)) == expected()
    captioned = file.read_bytes()
    for name in NAMES:  # captions of equal length
        captioned = captioned.replace(CAPTIONS[name].encode(), CAPTIONS[name].upper().encode())
    file.write_bytes(captioned)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    assert captions(from_hub(tmp_path)) == sorted(text.upper() for text in expected())
