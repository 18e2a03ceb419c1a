"""What is said of a data set is what training does with it."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
from helpers.image_folders import CAPTIONS, as_embedded_parquet, as_jsonl, as_tars, as_txt, content
from PIL import Image

from t2i.cli import data
from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.inspection import pages
from t2i.inspection.entries import HELD_OUT, LEFT_OUT, TRAIN
from t2i.inspection.survey import survey
from t2i.inspection.survey_page import MOST_THUMBNAILS, write_page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def surveyed(folder, *overrides):
    typed = data.overrides_in([str(folder), "resolution=16", *overrides])
    return survey(data.configured(typed), "t2i train")


def trained_on(folder, *overrides):
    """The captions of both sides, as training loads them."""
    typed = data.overrides_in([str(folder), "resolution=16", *overrides])
    loaded = build(data.configured(typed), "dataset")
    return sorted(loaded.train.captions), sorted(loaded.validation.captions)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Images with captions, and among them everything that goes wrong. Tests don't change it."""
    folder = tmp_path_factory.mktemp("odd")
    as_txt(folder)
    shutil.copy(folder / "a.png", folder / "copy.png")
    (folder / "copy.txt").write_text("the same in other words")
    with Image.open(folder / "d.png") as image:
        image.resize((64, 48)).save(folder / "edited.jpg")
    (folder / "edited.txt").write_text(" ".join(["long"] * 50))
    (folder / "page.jpg").write_text("<html>")
    (folder / "page.txt").write_text("a web page")
    Image.new("RGB", (30, 30), "red").save(folder / "silent.png")
    (folder / "orphan.txt").write_text("of no image")
    (folder / "notes.docx").write_bytes(b"x")
    (folder / "gone.png").symlink_to("/nowhere.png")
    (folder / "test").mkdir()
    Image.new("RGB", (30, 30), "blue").save(folder / "test" / "t.png")
    (folder / "test" / "t.txt").write_text("a test")
    return folder


@pytest.fixture(scope="module")
def found(odd):
    return surveyed(odd, "dataset.resolution=32")


IN_OTHER_FORMATS = [pytest.param(write, marks=pytest.mark.slow) for write in (as_jsonl, as_embedded_parquet)]


@pytest.mark.slow
@pytest.mark.parametrize("write", [as_txt, *IN_OTHER_FORMATS])
def test_both_sides_are_those_of_training(write, tmp_path):
    write(tmp_path)
    found = surveyed(tmp_path)
    sides = [sorted(entry.captions for entry in found.of(side)) for side in (TRAIN, HELD_OUT)]
    assert tuple(sides) == trained_on(tmp_path)
    assert (found.refusal, found.of(LEFT_OUT)) == ("", [])


@pytest.mark.slow
def test_every_file_is_trained_on_held_out_or_left_out_for_a_reason(odd, found):
    assert {entry.name: entry.reason for entry in found.of(LEFT_OUT)} == {
        "page.jpg": "is not an image in a format that t2i reads",
        "silent.png": "has no caption: there is no .txt file next to it",
        "gone.png": "is a link to /nowhere.png, which does not exist",
        "orphan.txt": "is a caption file without an image",
        "notes.docx": "is no image, and belongs to none",
        "test/t.png": "is in a folder test/, which is neither trained on nor held out (dataset.split_folders=false "
        "uses it)",
    }
    names = [entry.name for entry in found.entries]
    files = {path.relative_to(odd).as_posix() for path in odd.rglob("*") if not path.is_dir()}
    captions = {name for name in files if name.endswith(".txt")} - {"orphan.txt"}
    assert sorted(names) == sorted(files - captions)
    sides = [sorted(entry.captions for entry in found.of(side)) for side in (TRAIN, HELD_OUT)]
    assert tuple(sides) == trained_on(odd, "dataset.on_error=skip")


@pytest.mark.slow
def test_training_would_stop_with_the_same_message(odd, found):
    with pytest.raises(ConfigError) as error:
        trained_on(odd)
    assert found.refusal == str(error.value)


def test_duplicates_long_captions_and_enlarged_images_are_named(found):
    assert [sorted(entry.name for entry in group) for group in found.duplicates] == [["a.png", "copy.png"]]
    assert [{pair.first.name, pair.second.name} for pair in found.alike] == [{"d.png", "edited.jpg"}]
    assert [entry.name for entry in found.entries if found.cut_off(entry)] == ["edited.jpg"]
    assert found.limit == 24  # tokens of the tiny model
    enlarged = {entry.name for entry in found.used if entry.scale > 1}
    assert enlarged == {entry.name for entry in found.used if min(entry.facts.width, entry.facts.height) < 32}


def test_a_held_out_image_with_a_twin_in_the_training_set_is_named(tmp_path):
    as_txt(tmp_path)
    (tmp_path / "val").mkdir()
    for name in ("b", "again"):
        shutil.copy(tmp_path / "a.png", tmp_path / "val" / f"{name}.png")
        (tmp_path / "val" / f"{name}.txt").write_text("a twin")
    with Image.open(tmp_path / "d.png") as image:
        image.resize((50, 40)).save(tmp_path / "val" / "smaller.png")
    (tmp_path / "val" / "smaller.txt").write_text("smaller")
    leaks = {(pair.first.name, pair.second.name) for pair in surveyed(tmp_path).leaks}
    assert leaks == {("val/b.png", "a.png"), ("val/again.png", "a.png"), ("val/smaller.png", "d.png")}


@pytest.mark.slow
def test_images_without_any_caption_are_said_to_be_so(tmp_path):
    (tmp_path / "a.png").write_bytes(content("a"))
    found = surveyed(tmp_path)
    assert "a.png has no caption" in found.refusal
    assert "none of the 1 images can be used" in surveyed(tmp_path, "dataset.on_error=skip").refusal
    assert [entry.name for entry in found.entries] == ["a.png"]
    assert found.entries[0].thumbnail


@pytest.mark.slow
def test_of_a_stream_the_index_tells(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    as_tars(folder)
    overrides = ["dataset.caption_column=txt", f"dataset.cache_dir={tmp_path / 'cache'}"]
    before = surveyed(folder, *overrides)
    assert len(before.of(HELD_OUT)) == len(CAPTIONS) // 2
    assert "1 of the 1 shards that are trained on have no index yet" in " ".join(before.notes)
    typed = data.overrides_in([str(folder), "resolution=16", *overrides])
    build(data.configured(typed), "dataset").train.index.summary(0)  # as training does
    after = surveyed(folder, *overrides)
    assert sorted(entry.captions for entry in after.used) == sorted((text,) for text in CAPTIONS.values())
    assert not any(entry.thumbnail for entry in after.entries)


def test_images_that_come_from_code_are_looked_at_too():
    others = ["faces", "people", "people_tones", "hearts", "animals", "food", "nature", "activities", "travel"]
    overrides = [f"dataset.groups.{group}=0" for group in (*others, "objects", "symbols", "flags")]
    found = survey(data.configured(["dataset=openmoji", *overrides]), "t2i train dataset=openmoji")
    assert len(found.of(TRAIN)) == 39
    assert all(entry.thumbnail for entry in found.entries)


def test_what_the_loader_says_is_kept_and_logging_is_as_before(found):
    assert any("neither trained on nor held out" in note for note in found.notes)
    logger = logging.getLogger("t2i.data")
    assert (logger.propagate, logger.level, logger.handlers) == (True, logging.NOTSET, [])


def test_the_page_shows_a_stranger_s_texts_as_texts(tmp_path):
    as_file = HOSTILE.replace("/", "_")
    (tmp_path / f"{as_file}.png").write_bytes(content("z"))
    (tmp_path / f"{as_file}.txt").write_text(HOSTILE)
    found = surveyed(tmp_path, f"dataset.path={tmp_path}")
    write_page(found, file := tmp_path / "data.html")
    text = file.read_text()
    assert text.count("<script") == 2  # the data, and the script that the policy names
    assert HOSTILE not in text
    script = (pages.HERE / "data.js").read_text()
    assert f"<script>{script}</script>" in text
    embedded = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert any(entry.get("captions") == [HOSTILE] for entry in embedded["entries"])
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.slow
def test_the_page_of_many_images_is_small(found, tmp_path):
    thumbnail = 2500 * b"x"  # bytes; one of 96 pixels has as many
    ordinary = next(entry for entry in found.of(TRAIN) if entry.name == "g.png")
    many = [replace(ordinary, name=f"{i}.png", thumbnail=thumbnail) for i in range(10_000)]
    large = replace(found, entries=[*found.entries, *many])
    write_page(large, file := tmp_path / "data.html")
    assert file.stat().st_size < 10_000_000
    text = file.read_text()
    assert text.count("data:image/webp") == MOST_THUMBNAILS
    assert f"thumbnails of {MOST_THUMBNAILS} images" in text


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(odd, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data.main([str(odd), "resolution=16"])
    shown = capsys.readouterr().out
    assert "Training would not begin" in shown
    assert "notes.docx" in shown
    assert shown.rstrip().endswith("data.html")
    (tmp_path / "data.html").unlink()
    data.main([str(odd), "resolution=16", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["left out"] == len(told["left_out"]) == 6
    assert {"first", "second", "bits", "mirrored"} == told["near_duplicates"][0].keys()
    assert not (tmp_path / "data.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the folder of a data set"),
        (["nowhere"], "neither a folder nor the id"),
        (["a.png"], "a.png is a file; give the folder of the images"),
        ([".", "."], "one data set at a time"),
        ([".", "--out", "."], "--out=. is not a file"),
        (["dataset=openmoji", "dataset.groups=null"], "dataset"),
    ],
)
def test_mistakes_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(content("a"))
    with pytest.raises(Exception, match=message):
        data.main(arguments)


@pytest.mark.slow
def test_of_several_sources_each_file_is_named_with_its_own(tmp_path):
    for name in ("mine", "others"):
        (tmp_path / name).mkdir()
        as_txt(tmp_path / name)
    (tmp_path / "mine" / "notes.docx").touch()
    sources = f"{{path: {tmp_path / 'mine'}, repeats: 2}}, {{path: {tmp_path / 'others'}}}, {{class_prompt: a dog}}"
    overrides = ["dataset=sources", f"dataset.sources=[{sources}]", "dataset.resolution=16"]
    found = survey(data.configured(overrides), "t2i train")
    assert len(found.used) + len(found.of(LEFT_OUT)) == 2 * len(CAPTIONS) + 1
    reasons = {entry.reason for entry in found.of(LEFT_OUT)}
    assert reasons <= {"is no image, and belongs to none", "is the same as a held-out image of another source"}
    assert any(entry.name == f"{tmp_path / 'mine'}: notes.docx" for entry in found.of(LEFT_OUT))
    assert "up to 100 images of 'a dog' are drawn by the base" in found.notes[-1]
    assert found.leaks == []


@pytest.mark.slow
def test_captions_are_those_that_are_trained_with(tmp_path):
    (tmp_path / "a.png").write_bytes(content("a"))
    (tmp_path / "a.txt").write_text("a cat")
    found = surveyed(tmp_path, "dataset.caption_template='sks, {caption}'")
    assert [entry.captions for entry in found.used] == [("sks, a cat",)]


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1400])
def test_in_a_browser_images_are_filtered_found_and_turned_over(width, found, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    ordinary, problems, requests = next(entry for entry in found.of(TRAIN) if entry.name == "g.png"), [], []
    many = [replace(ordinary, name=f"{i}.png", captions=(f"number {i}",)) for i in range(100)]
    write_page(replace(found, entries=[*found.entries, *many]), file := tmp_path / "data.html")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=options)
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        names = tab.locator("#images b")
        assert names.count() == 60
        tab.click("#next")
        assert tab.locator("#place").inner_text().startswith("61 to 120")
        tab.click("button[data-kind='left out']")
        assert sorted(names.all_inner_texts()) == sorted(entry.name for entry in found.of(LEFT_OUT))
        tab.click("button[data-kind='']")
        tab.fill("#search", "NUMBER 42")
        assert names.all_inner_texts() == ["42.png"]
        assert tab.locator("#duplicates img").count() == 2
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        browser.close()
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
