"""Commands take the name of a run in multirun/ for its folder."""

from pathlib import Path

import pytest

from t2i.cli.arguments import run_folder


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("mine", "multirun/mine"),
        ("gamma/seed-0", "multirun/gamma/seed-0"),
        ("both", "both"),
        ("multirun/mine", "multirun/mine"),
        ("OWNER/NAME", "OWNER/NAME"),
    ],
)
def test_a_path_comes_before_a_name_and_what_is_neither_stays(text, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for there in ("multirun/mine", "multirun/gamma/seed-0", "multirun/both", "both"):
        (tmp_path / there).mkdir(parents=True)
    assert run_folder(text) == Path(folder)
