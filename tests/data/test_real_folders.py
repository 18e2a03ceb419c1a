"""Folders as people have them: names and captions from other machines, editors and tools."""

import json
import logging

import pytest
from helpers.image_folders import content, from_folder
from PIL import Image

from t2i.config import ConfigError
from t2i.data import image_folder
from t2i.data.images import formats


def image(file, colour=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "png")


def found(folder, **settings):
    """Caption or problem of each item, by its name."""
    return {item.name: item.problem or item.caption for item in image_folder.find(folder, "text", **settings).items}


@pytest.mark.parametrize(
    "written",
    [
        *(
            "below/a.PNG",
            " below/a.png ",
            "below\\a.png",
            "pics/below/a.png",
            "./below/a.png",
            "below/a",
            "BELOW/A.png",
        ),
        *("{root}/below/a.png", "/home/somebody/pics/below/a.png", r"C:\Users\somebody\pics\below\a.png"),
    ],
)
def test_names_in_metadata_are_found_as_they_are_written(written, tmp_path):
    root = tmp_path / "pics"
    image(root / "below" / "a.png")
    rows = [{"file_name": written.format(root=root), "text": "A"}]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert found(root) == {"below/a.png": "A"}


def test_a_name_that_could_be_two_files_is_not_guessed(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "a.jpg")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "A", "text": "A"}\n{"file_name": "a.jpg", "text": "J"}\n')
    problem = "could be a.jpg or a.png; write the name as it is"
    assert found(tmp_path) == {
        "a.jpg": "J", "A (metadata.jsonl, row 0)": problem, "a.png": "has no caption in a metadata file"
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "file_name,text\na.png,A\nb.png,\"a red apple, on a table\"\n",
        "file_name, text\na.png, A\nb.png, \"a red apple, on a table\"\n",
        " file_name ; text\na.png;A\nb.png;a red apple, on a table\n",
        "file_name\ttext\na.png\tA\nb.png\ta red apple, on a table\n",
        '"text","file_name",\n"A","a.png",\n"a red apple, on a table","b.png",\n',
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_dialect_of_a_csv_is_found(text, encoding, tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    (tmp_path / "metadata.csv").write_text(text, encoding=encoding)
    assert found(tmp_path) == {"a.png": "A", "b.png": "a red apple, on a table"}


def test_a_comma_that_is_not_quoted_does_not_cut_a_caption(tmp_path):
    image(tmp_path / "000.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n000.png,a red apple, on a table, at noon\n")
    problem = 'has 4 fields, 2 columns; quote it, as in "a red apple, on a table, at noon"'
    assert found(tmp_path) == {"000.png (metadata.csv, row 0)": problem}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("Äpfel", "utf-8"), ("Äpfel", "utf-8-sig"), ("Äpfel", "utf-16"), ("Äpfel", "utf-16-le"), ("Äpfel", "latin-1"),
     ("“Äpfel” – 5 €", "cp1252"), ("日本", "utf-16")],
)  # fmt: skip
def test_captions_are_read_in_the_encodings_of_editors(text, encoding, tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(f"{text}\r\n".encode(encoding))
    assert found(tmp_path) == {"a.png": [text]}


def test_a_text_that_may_be_in_another_encoding_is_said_or_refused(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name, text, encoding in (("a", "Äpfel", "cp1252"), ("b", "pears", "utf-8"), ("c", "赤い", "shift_jis")):
        image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text, encoding=encoding)
    captions = found(tmp_path)
    assert captions.pop("c.png").startswith("can't be used: c.txt can't be read (it is not text in UTF-8, UTF-16 or")
    assert captions == {"a.png": ["Äpfel"], "b.png": ["pears"]}
    assert "1 of 3 caption files are not in UTF-8 and are read as Windows' Latin-1 (a.txt)" in caplog.text


def test_a_caption_may_keep_the_suffix_of_its_image(tmp_path):
    for name in ("a.png", "b.jpg", "b.jpg.png"):
        image(tmp_path / name)
    (tmp_path / "a.png.txt").write_text("A")
    (tmp_path / "b.jpg.txt").write_text("of b.jpg.png")
    assert found(tmp_path) == {
        "a.png": ["A"], "b.jpg.png": ["of b.jpg.png"], "b.jpg": "has no caption: there is no .txt file next to it"
    }  # fmt: skip


@pytest.mark.parametrize(("picture", "text"), [("A.JPG", "a.txt"), ("a.png", "A.TXT"), ("a.png", "a.caption")])
def test_captions_are_found_in_upper_case_and_under_other_suffixes(picture, text, tmp_path):
    image(tmp_path / picture)
    (tmp_path / text).write_text("A")
    assert found(tmp_path) == {picture: ["A"]}


def test_the_lines_of_a_text_file_are_one_caption_unless_told_otherwise(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("a red apple\n\non a table\n")
    (tmp_path / "b.txt").write_text("a pear\n")
    assert found(tmp_path) == {"a.png": ["a red apple on a table"], "b.png": ["a pear"]}
    assert "1 of 2 caption files have several lines (a.txt): the lines are joined to one caption" in caplog.text
    assert found(tmp_path, captions_per_line=True)["a.png"] == ["a red apple", "on a table"]


def test_folders_of_splits_are_what_their_names_say(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for i, name in enumerate(("train/a", "train/b", "val/c", "test/d", "more/e", "more/test/f")):
        image(tmp_path / f"{name}.png", i)
        (tmp_path / f"{name}.txt").write_text(name)
    data = from_folder(tmp_path, split_folders=True)
    assert sorted(data.train.captions) == [("more/e",), ("more/test/f",), ("train/a",), ("train/b",)]
    assert data.validation.captions == [("val/c",)]
    assert "1 images are held out: they are in val/" in caplog.text
    assert "1 images are neither trained on nor held out: they are in test/" in caplog.text
    assert len(from_folder(tmp_path, validation_share=0).train) == 6  # as earlier runs did


def test_a_folder_of_test_images_alone_is_a_data_set(tmp_path):
    for i in range(4):
        image(tmp_path / "test" / f"{i}.png", i)
        (tmp_path / "test" / f"{i}.txt").write_text("A")
    assert len(from_folder(tmp_path, split_folders=True, validation_share=0).train) == 4


def test_one_caption_for_all_images(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("A")
    image(tmp_path / "b.jfif")
    assert found(tmp_path, caption="photo of sks dog") == dict.fromkeys(["a.png", "b.jfif"], "photo of sks dog")
    assert "is the caption of all 2 images" in caplog.text
    with pytest.raises(ConfigError, match=r"dataset\.caption=1984 must be a text"):
        from_folder(tmp_path, caption=1984)


def test_what_is_not_read_is_named(tmp_path, caplog):
    for name in ("a.png", "b.jpg"):
        image(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(name)
    for name in ("lonely.txt", "photo.mov", "notes.md"):
        (tmp_path / name).write_text(name)
    for name in ("c.svg", "d.heic", "e.cr2"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" if name == "d.heic" else b"?")
        (tmp_path / name).with_suffix(".txt").write_text(name)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    result = found(tmp_path)
    heic = result.pop("d.heic")
    assert "HEIF" in formats() or heic.startswith("is in HEIC, which needs another package: pip install 't2i[heic]'")
    assert result == {
        **{"a.png": ["a.png"], "b.jpg": ["b.jpg"]},
        **dict.fromkeys(["c.svg", "e.cr2"], "is not an image in a format that t2i reads"),
        "gone.png": f"is a link to {tmp_path / 'nowhere.png'}, which does not exist",
    }
    assert "1 caption files have no image, such as lonely.txt" in caplog.text
    assert "2 other files are not read, such as notes.md, photo.mov" in caplog.text


@pytest.mark.parametrize(("number", "settings"), [(1, {}), (3, {"validation_share": 0}), (2, {}), (4, {})])
def test_few_images_are_a_data_set(number, settings, tmp_path):
    for i in range(number):
        (tmp_path / f"{i}.png").write_bytes(content(str(i)))
        (tmp_path / f"{i}.txt").write_text("A")
    data = from_folder(tmp_path, **{"validation_share": 0.05, "min_validation_samples": 8, **settings})
    held_out = 0 if number == 1 or settings else 1
    assert (len(data.train), len(data.validation)) == (number - held_out, held_out)
    assert bool(data.why_none) == (not held_out)
