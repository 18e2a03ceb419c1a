"""A folder of several files is complete or not there, and what killed processes left is removed."""

import os
import time

import pytest

from t2i.config import ConfigError
from t2i.runs.files import remove_leftovers
from t2i.runs.records import tidy
from t2i.runs.whole_folders import new_folder, replacing_folder


def test_a_folder_is_replaced_at_the_end_or_stays_as_it_was(tmp_path):
    folder, temporary = tmp_path / "model", tmp_path / ".model.tmp"
    temporary.mkdir()
    (temporary / "of a killed process").touch()
    for content in ("old", "new"):
        with replacing_folder(folder, temporary) as place:
            assert list(place.iterdir()) == []
            (place / content).touch()
            assert [file.name for file in folder.glob("*")] == ([] if content == "old" else ["old"])
        assert [file.name for file in folder.iterdir()] == [content]
    with pytest.raises(ZeroDivisionError), replacing_folder(folder, temporary) as place:
        (place / "newest").write_bytes(bytes(1 // 0))
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "new"]


def test_a_new_folder_takes_no_place_and_is_written_by_one_process(tmp_path):
    folder = tmp_path / "model"
    with new_folder(folder) as place:
        (place / "file").touch()
        with pytest.raises(ConfigError, match="is being written by another process"), new_folder(folder):
            raise AssertionError
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "file"]
    with pytest.raises(ConfigError, match=f"^{folder} exists; name a new folder"), new_folder(folder):
        raise AssertionError
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "file"]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    names = [".0123abcd.json", ".0123abcd.png", "run.json", ".gitignore", ".0123abc.json"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".89abcdef.json").mkdir()
    tidy(tmp_path)
    assert not (tmp_path / ".0123abcd.json").exists()
    assert all((tmp_path / name).exists() for name in [*names[1:], ".89abcdef.json"])
    remove_leftovers(tmp_path, (".png",), age=3600)
    assert (tmp_path / ".0123abcd.png").exists()
    hours_ago = time.time() - 7200
    os.utime(tmp_path / ".0123abcd.png", (hours_ago, hours_ago))
    remove_leftovers(tmp_path, (".png",), age=3600)
    assert not (tmp_path / ".0123abcd.png").exists()
    remove_leftovers(tmp_path / "missing", (".png",))
