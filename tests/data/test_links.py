"""A stranger's data set does not read what lies outside its folder, unless dataset.follow_links=true."""

import json
import logging

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import packing
from helpers.image_folders import CAPTIONS, as_jsonl, as_txt, content, from_folder, from_hub, write_images

from t2i.config import ConfigError
from t2i.runs.folder import changes

OUTSIDE = r"lies outside the data folder, at .*secret.*; copy it, or set dataset.follow_links=true"


@pytest.fixture
def given(tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    return folder


def moved_out(file):
    """Move a file or folder out of the data folder and leave a link in its place."""
    secret = file.parent.parent / f"secret-{file.name}"
    file.rename(secret)
    file.symlink_to(secret)


@pytest.mark.parametrize(("load", "write"), [(from_folder, as_jsonl), (from_folder, as_txt), (from_hub, as_jsonl)])
def test_an_image_outside_is_refused_or_skipped_or_followed(load, write, given, caplog):
    write(given)
    moved_out(given / "a.png")
    with pytest.raises(ConfigError, match=r"outside the data .*follow_links"):
        load(given)
    skipped = load(given, on_error="skip").skipped
    assert len(skipped) == 1
    assert "outside" in skipped[0]["reason"]
    with caplog.at_level(logging.WARNING):
        data = load(given, follow_links=True)
    assert len(data.train) + len(data.validation) == len(CAPTIONS)
    assert "dataset.follow_links=true: 1 files" in caplog.text


def test_a_caption_file_outside_is_refused(given, caplog):
    as_txt(given)
    (given / "a.txt").unlink()
    (given.parent / "secret").write_text("root:x:0:0")
    (given / "a.txt").symlink_to("../secret")
    with pytest.raises(ConfigError, match="a.png can't be used: a.txt " + OUTSIDE):
        from_folder(given)
    data = from_folder(given, follow_links=True)
    assert ("root:x:0:0",) in [*data.train.captions, *data.validation.captions]


@pytest.mark.parametrize("load", [from_folder, from_hub])
def test_a_metadata_file_outside_is_refused(load, given):
    as_jsonl(given)
    moved_out(given / "metadata.jsonl")
    for policy in ("stop", "skip"):
        with pytest.raises(ConfigError, match="metadata.jsonl " + OUTSIDE):
            load(given, on_error=policy)
    assert len(load(given, follow_links=True).train) > 0


def test_a_listed_image_outside_is_refused(given):
    as_jsonl(given)
    (given.parent / "secret.png").write_bytes(content("secret"))
    (given / "link.png").symlink_to("../secret.png")
    with (given / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "link.png", "text": "S"}) + "\n")
    with pytest.raises(ConfigError, match="link.png " + OUTSIDE):
        from_folder(given)


def test_a_linked_folder_is_followed_only_if_told_so(given):
    as_txt(given)
    moved_out(given / "below")
    with pytest.raises(ConfigError, match="below " + OUTSIDE):
        from_folder(given)
    data = from_folder(given, follow_links=True)
    assert len(data.train) + len(data.validation) == len(CAPTIONS)


def test_circular_links_end(given):
    as_txt(given)
    (given / "below" / "up").symlink_to(given)
    (given / "below" / "self").symlink_to(given / "below")
    (given.parent / "outside").mkdir()
    (given.parent / "outside" / "back").symlink_to(given)
    (given / "outside").symlink_to("../outside")
    (given / "loop.png").symlink_to(given / "loop.png")
    skipped = from_folder(given, follow_links=True, on_error="skip").skipped
    reason = "is a symbolic link to a folder that contains it; remove the link"
    names = {"below/up", "below/self", "outside/back"}
    reasons = {item["item"]: item["reason"] for item in skipped}
    assert reasons.pop("loop.png") == f"is a link to {given / 'loop.png'}, which does not exist"
    assert reasons == dict.fromkeys(names, reason)


def test_links_that_stay_inside_are_fine_also_in_a_folder_that_is_a_link(given, tmp_path):
    as_txt(given)
    (given / "a.png").rename(given / "below" / "moved")
    (given / "a.png").symlink_to("below/../below/moved")
    (given / "a.txt").rename(given / "captions")
    (given / "a.txt").symlink_to(given / "captions")
    (tmp_path / "linked").symlink_to(given)
    for path in (given, tmp_path / "linked"):
        data = from_folder(path)
        assert len(data.train) + len(data.validation) == len(CAPTIONS)


def test_rows_that_name_a_link_outside_are_refused(given):
    rows = [{"image": {"bytes": content(name), "path": None}, "text": text} for name, text in CAPTIONS.items()]
    (given.parent / "secret.png").write_bytes(content("secret"))
    (given / "link").symlink_to("..")
    rows[0]["image"] = {"bytes": None, "path": str(given / "link" / "secret.png")}
    pq.write_table(pa.Table.from_pylist(rows), given / "part.parquet")
    with pytest.raises(ConfigError, match="train, row 0 points outside the data set"):
        from_hub(given)
    assert from_hub(given, follow_links=True).skipped == []


def test_a_parquet_file_outside_is_refused(given):
    rows = [{"image": {"bytes": content(name), "path": None}, "text": text} for name, text in CAPTIONS.items()]
    pq.write_table(pa.Table.from_pylist(rows), given / "part.parquet")
    moved_out(given / "part.parquet")
    with pytest.raises(ConfigError, match="part.parquet " + OUTSIDE):
        from_hub(given)
    assert len(from_hub(given, follow_links=True).train) > 0


@pytest.mark.parametrize("named", ["../secret.csv", "{absolute}", "file://{absolute}"])
def test_a_readme_cannot_name_files_outside(named, given):
    write_images(given)
    secret = given.parent / "secret.csv"
    secret.write_text("image,text\nx,password\n")
    named = named.format(absolute=secret)
    (given / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {named}\n---\n")
    with pytest.raises(ConfigError, match=OUTSIDE):
        from_hub(given)


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "named",
    [
        *("local://{absolute}", "LOCAL://{absolute}", "FILE://{absolute}", "simplecache::local://{absolute}"),
        *("reference://x", "dir::{absolute}", "http://127.0.0.1:9/x.jsonl", "https://127.0.0.1:9/x.png", "memory://x"),
        *("zip://x.csv::http://127.0.0.1:9/x.zip", "zip://*::{absolute}", "hf://datasets/mine/private/x.csv"),
        "[{{split: train, path: [a.csv, 'local://{absolute}']}}]",
    ],
)
def test_a_readme_names_paths_only(named, file, given, monkeypatch):
    """Nothing is looked up where other names lead."""
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: pytest.fail("it was looked up"))
    secret = given.parent / "secret.csv"
    secret.write_text("image,text\nx,password\n")
    named = named.format(absolute=secret)
    settings = f"configs:\n- config_name: default\n  data_files: {named}\n"
    (given / file).write_text(f"---\n{settings}---\n" if file == "README.md" else settings)
    with pytest.raises(ConfigError, match=r"lies outside the data set, as its README.md says"):
        from_hub(given)


def test_the_name_of_a_format_is_no_data_set(given, monkeypatch):
    """`datasets` would load the pickles of the current folder."""
    monkeypatch.chdir(given)
    with pytest.raises(ConfigError, match=r"names a format of `datasets`; for a folder of this name, use \./pandas"):
        from_hub("pandas")


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
@pytest.mark.parametrize("pattern", ["", "/*.{suffix}"])
def test_a_shard_outside_is_refused(suffix, pattern, given, tmp_path, caplog):
    columns = {"caption_column": "txt" if suffix == "tar" else "text"}
    packing.write_shards(given, suffix, 3, 3)
    (given / f"inside.{suffix}").symlink_to(f"train-001.{suffix}")
    path = f"{given}{pattern.format(suffix=suffix)}"
    assert packing.from_files(path, tmp_path / "cache", **columns).skipped == []
    moved_out(given / f"train-000.{suffix}")
    with pytest.raises(ConfigError, match=f"train-000.{suffix} " + OUTSIDE):
        packing.from_files(path, tmp_path / "cache", **columns)
    with caplog.at_level(logging.WARNING):
        packing.from_files(path, tmp_path / "cache", follow_links=True, **columns)
    assert "dataset.follow_links=true: 1 files" in caplog.text


def test_a_linked_folder_of_shards_is_refused(given, tmp_path):
    packing.write_shards(given / "more", "tar", 3, 3)
    moved_out(given / "more")
    with pytest.raises(ConfigError, match=OUTSIDE):
        packing.from_files(given, tmp_path / "cache")


def test_a_run_that_began_without_the_setting_goes_on():
    assert changes({"dataset.path": "given"}, {"dataset.path": "given", "dataset.follow_links": False}) == {}


@pytest.mark.slow
@pytest.mark.parametrize("node", ["[" * 3000 + "]" * 3000, "&a [*a, *a]", "{" * 500 + "}" * 500])
def test_a_readme_of_any_depth_is_survived_or_named(node, given):
    """Where `datasets` can't parse it, either, the error says so."""
    as_jsonl(given)
    (given / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {node}\n---\n")
    with pytest.raises(ConfigError, match=rf"dataset.path={given}"):
        from_hub(given)


def test_a_readme_that_is_larger_than_any_is_not_read(given):
    as_jsonl(given)
    with (given / "README.md").open("w") as file:
        file.truncate(10**11)  # a sparse file, which takes no space
    with pytest.raises(ConfigError, match=r"its README.md has 100000000000 bytes; it may have 50000000"):
        from_hub(given)
