import json
import os
import unicodedata

import datasets
import pytest
from PIL import Image

from t2i.config import ConfigError
from t2i.data import image_folder
from t2i.data.images import examine


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def image(file, colour=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file)


def metadata(folder, *rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def found(folder):
    """Caption or problem of each item, by its name."""
    return {item.name: item.problem or item.caption for item in image_folder.items(folder, "text")}


def test_nested_folders_with_metadata_and_text_files(tmp_path):
    """The nearest metadata file need not be the only one; hidden files and others are no images."""
    for name in ("a.jpg", "one/b.png", "one/two/c.WEBP", "three/d.png", ".hidden/e.png", "._a.jpg"):
        image(tmp_path / name)
    (tmp_path / "README.txt").write_text("nothing about images")
    metadata(tmp_path, {"file_name": "a.jpg", "text": "A"}, {"file_name": "one/two/c.WEBP", "text": "C"})
    metadata(tmp_path / "one", {"file_name": "b.png", "text": "B"})
    (tmp_path / "three" / "d.txt").write_text("D\nanother\n", encoding="utf-8-sig")
    assert found(tmp_path) == {"a.jpg": "A", "one/b.png": "B", "one/two/c.WEBP": "C", "three/d.png": ["D", "another"]}


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
    items = image_folder.items(tmp_path / "data", "text")
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
        "e.png": "has no caption (it is null, or not text)",
        "link": "is a symbolic link to a folder; copy or mount the folder",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "caption": "A"}', "dataset.caption_column=text is not in .*; its "
         "columns are file_name, caption"),
        ("metadata.jsonl", '{"image": "a.png", "text": "A"}', "has no column file_name; its columns are image, text"),
        ("metadata.jsonl", '{"file_name": "a.png", ', r"metadata.jsonl can't be read \(Expecting"),
        ("metadata.jsonl", '"a.png"', "metadata.jsonl has no column file_name"),
        ("metadata.csv", "", "has no column file_name; its columns are none"),
        ("metadata.csv", "file_name,caption\na.png,A\n", "its columns are file_name, caption"),
        ("metadata.parquet", "PAR1", "metadata.parquet can't be read"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_used_is_named(name, text, message, tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        image_folder.items(tmp_path, "text")


def test_each_file_is_looked_at_once_and_again_when_it_changes(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(image_folder, "examine", lambda content: looked.append(content) or examine(content))
    for name in "abc":
        image(tmp_path / f"{name}.png", ord(name))
        (tmp_path / f"{name}.txt").write_text(name)
    first = image_folder.items(tmp_path, "text")
    assert len(looked) == 3
    assert [item.facts for item in image_folder.items(tmp_path, "text")] == [item.facts for item in first]
    assert len(looked) == 3
    image(tmp_path / "b.png", 0)
    os.utime(tmp_path / "b.png", ns=(1, 1))
    image(tmp_path / "d.png", 4)
    (tmp_path / "d.txt").write_text("d")
    again = {item.name: item.facts.sha256 for item in image_folder.items(tmp_path, "text")}
    assert len(looked) == 5
    assert [again[item.name] == item.facts.sha256 for item in first] == [True, False, True]
