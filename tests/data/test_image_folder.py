import json
import logging
import os
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.image_folders import as_jsonl, content, from_folder, write_images
from PIL import Image

from t2i.config import ConfigError
from t2i.data import image_folder, metadata_files


def image(file, colour=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file)


def metadata(folder, *rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def found(folder):
    """Caption or problem of each item, by its name."""
    return {item.name: item.problem or item.caption for item in image_folder.find(folder, "text").items}


def test_nested_folders_with_metadata_and_text_files(tmp_path):
    """Several metadata files may apply; hidden files and other files are ignored."""
    for name in ("a.jpg", "one/b.png", "one/two/c.WEBP", "three/d.png", ".hidden/e.png", "._a.jpg"):
        image(tmp_path / name)
    (tmp_path / "README.txt").write_text("nothing about images")
    metadata(tmp_path, {"file_name": "a.jpg", "text": "A"}, {"file_name": "one/two/c.WEBP", "text": "C"})
    metadata(tmp_path / "one", {"file_name": "b.png", "text": "B"})
    (tmp_path / "three" / "d.txt").write_text("D\nanother\n", encoding="utf-8-sig")
    assert found(tmp_path) == {"a.jpg": "A", "one/b.png": "B", "one/two/c.WEBP": "C", "three/d.png": ["D another"]}


def test_missing_captions_are_answered_with_one_for_all(tmp_path):
    image(tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match=r"fix or remove them, give all images one caption with dataset\.caption, or"):
        from_folder(tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_names_are_found_however_they_are_composed(form, tmp_path):
    on_disk = unicodedata.normalize(form, "Äpfel/übung 日本 é.png")
    listed = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], on_disk)
    image(tmp_path / on_disk)
    metadata(tmp_path, {"file_name": listed, "text": "Äpfel"})
    assert found(tmp_path) == {on_disk: "Äpfel"}


@pytest.mark.parametrize("name", ["../outside.png", "below/../../outside.png", "{absolute}", "../../../../etc/passwd"])
def test_metadata_cannot_reach_outside_the_folder(name, tmp_path):
    image(tmp_path / "outside.png")
    image(tmp_path / "data" / "below" / "a.png")
    name = name.format(absolute=tmp_path / "outside.png")
    metadata(tmp_path / "data", {"file_name": "below/a.png", "text": "A"}, {"file_name": name, "text": "B"})
    items = image_folder.find(tmp_path / "data", "text").items
    assert [item.problem for item in items] == ["", "points outside the data folder"]
    assert items[1].content() == b""


def test_metadata_below_may_name_files_above_it_within_the_folder(tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / "tables").mkdir()
    metadata(tmp_path / "tables", {"file_name": "../a.png", "text": "A"})
    assert found(tmp_path) == {"a.png": "A"}


def test_nothing_is_dropped_in_silence(tmp_path):
    for name in ("a.png", "b.png", "c.png", "d.png", "d.jpg", "e.png"):
        image(tmp_path / name)
    (tmp_path / "d.txt").write_text("which one?")
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    rows = [{"file_name": "a.png", "text": "A"}, {"file_name": "a.png", "text": "again"}]
    metadata(
        tmp_path, *rows, {"file_name": "gone.png", "text": "B"}, {"file_name": 3, "text": "C"}, {"file_name": "b.png"}
    )
    assert found(tmp_path) == {
        "a.png": "A",
        "a.png (metadata.jsonl, row 1)": "is listed twice; give several captions as a list in one row",
        "gone.png (metadata.jsonl, row 2)": "does not exist",
        "3 (metadata.jsonl, row 3)": "is not a file name",
        "b.png": "has no caption (it is null, or not text)",
        "c.png": "has no caption in a metadata file",
        "d.png": "shares d.txt with another image; rename one of them",
        "d.jpg": "shares d.txt with another image; rename one of them",
        "e.png": "can't be used: e.txt can't be read (it is not text in UTF-8, UTF-16 or Latin-1; save it in UTF-8)",
        "link": "is a symbolic link to a folder; copy or mount the folder",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "caption": "A"}', "dataset.caption_column=text is not in .*; its "
         "columns are file_name, caption"),
        ("metadata.jsonl", '{"image": "a.png", "text": "A"}', "has no column file_name; its columns are image, text"),
        ("metadata.jsonl", '{"file_name": "a.png", ', r"metadata.jsonl can't be read \(Expecting"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "A"}\n["text"]', "metadata.jsonl can't be read .*object"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "A"}\n"text"', "metadata.jsonl can't be read .*object"),
        ("metadata.jsonl", "[" * 200_000, "metadata.jsonl can't be read .*recursion"),
        ("metadata.jsonl", '"a.png"', "metadata.jsonl can't be read .*object"),
        ("metadata.csv", "", "has no column file_name; its columns are none"),
        ("metadata.csv", "file_name,caption\na.png,A\n", "its columns are file_name, caption"),
        ("metadata.parquet", "PAR1", "metadata.parquet can't be read"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_used_is_named(name, text, message, tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        image_folder.find(tmp_path, "text")


def test_each_file_is_scanned_once_and_again_when_it_changes(tmp_path, caplog):
    def scanned():
        """Hashes by name, and the messages."""
        caplog.clear()
        hashes = {item.name: item.facts.sha256 for item in image_folder.find(tmp_path, "text").items}
        return hashes, [record.getMessage() for record in caplog.records]

    caplog.set_level(logging.INFO)
    for name in "abc":
        image(tmp_path / f"{name}.png", ord(name))
        (tmp_path / f"{name}.txt").write_text(name)
    first, messages = scanned()
    assert messages == [f"scanning 3 new images in {tmp_path}"]
    assert scanned() == (first, [])
    image(tmp_path / "b.png", 0)
    os.utime(tmp_path / "b.png", ns=(1, 1))
    image(tmp_path / "d.png", 4)
    (tmp_path / "d.txt").write_text("d")
    again, messages = scanned()
    assert messages == [f"scanning 2 new images in {tmp_path}"]
    assert [again[name] == first[name] for name in ("a.png", "b.png", "c.png")] == [True, False, True]


def broken(folder):
    """A folder in which 19 of 24 items are good, and what is wrong with the others."""
    rows = write_images(folder)
    (folder / "a.png").write_bytes(content("a")[:-400])
    (folder / "below" / "b.png").write_bytes(b"")
    rows[3]["text"], rows[4]["text"], rows[5]["text"] = None, " ", 7
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "a.png": "can't be read as an image (image file is truncated",
        "below/b.png": "is an empty file",
        "d.png": "has no caption",
        "below/e.png": "has an empty caption: ' '",
        "below/below/f.png": "has a caption that is not text: 7",
    }


def test_bad_items_stop_the_run_or_are_listed(tmp_path, caplog):
    reasons = broken(tmp_path)
    with pytest.raises(ConfigError, match=r"a.png can't be read .*\(5 of 24 items can't be used\).*on_error=skip"):
        from_folder(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = from_folder(tmp_path, on_error="skip")
    assert "5 of 24 items" in caplog.text
    assert len(found.train) + len(found.validation) == 19
    assert {each["item"] for each in found.skipped} == set(reasons)
    for each in found.skipped:
        assert each["reason"].startswith(reasons[each["item"]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "left"}, "dataset.crop=left is not known; choose from center, random"),
        ({"interpolation": "cubic"}, "dataset.interpolation=cubic is not known; choose from lanczos"),
        ({"on_error": "ignore"}, "dataset.on_error=ignore is not known; choose from stop, skip"),
        ({"resolution": 0}, "dataset.resolution=0 must be positive"),
        ({"max_train_samples": 0}, "dataset.max_train_samples=0 must be positive"),
        ({"caption_column": "caption"}, "dataset.caption_column=caption is not in .*; its columns are file_name, text"),
        ({"validation_share": -0.1}, "dataset.validation_share=-0.1 must be a fraction"),
    ],
)
def test_settings_that_a_folder_cannot_have(changes, message, tmp_path):
    as_jsonl(tmp_path)
    with pytest.raises(ConfigError, match=message):
        from_folder(tmp_path, **changes)


def test_a_folder_without_write_images(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset.path=.* contains no images with captions"):
        from_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"dataset.path=.*nowhere is not a folder; .* use dataset=hub"):
        from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_without_an_end_of_line_does_not_fill_the_memory(name, tmp_path):
    image(tmp_path / "a.png")
    with (tmp_path / name).open("w") as file:
        file.truncate(10**11)  # a sparse file, which takes no space
    with pytest.raises(ConfigError, match=rf"{name} can't be read \(line 1 is longer than 1000000 characters\)"):
        found(tmp_path)


def test_metadata_of_billions_of_equal_rows_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata_files, "MOST_ROWS", 10)
    image(tmp_path / "a.png")
    pq.write_table(pa.table({"file_name": ["a.png"] * 11, "text": ["A"] * 11}), tmp_path / "metadata.parquet")
    with pytest.raises(ConfigError, match=r"metadata\.parquet can't be read \(it has 11 rows; it may have 10\)"):
        found(tmp_path)


def test_images_and_captions_larger_than_any_are_named_and_not_read(tmp_path):
    for name in ("a.png", "b.png", "b.txt"):
        with (tmp_path / name).open("w") as file:
            file.truncate(10**11)
    (tmp_path / "a.txt").write_text("A")
    assert found(tmp_path) == {
        "a.png": "has 100000000000 bytes; an image may have 1073741824",
        "b.png": "can't be used: b.txt has 100000000000 bytes; a caption file may have 1000000",
    }
