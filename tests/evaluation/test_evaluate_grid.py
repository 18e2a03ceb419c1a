"""`t2i evaluate --grid`, where the disk is full."""

import errno
from pathlib import Path

import pytest
from PIL import Image

from t2i import evaluate
from t2i.cli import failing
from t2i.sampling import images, pipelines
from t2i.tiny import judge


def test_a_full_disk_is_named_after_the_scores(tmp_path, capsys, monkeypatch):
    def full(self, file, *_, **__):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def white(pipeline, prompts, *_, **__):
        return [Image.new("RGB", (64, 64), "white") for _ in prompts]

    monkeypatch.setattr(pipelines, "load_pipeline", lambda *_: None)
    monkeypatch.setattr(images, "sample", white)
    monkeypatch.setattr(judge, "Judge", FixedJudge)
    monkeypatch.setattr(Image.Image, "save", full)
    grid = tmp_path / "grid.png"
    with pytest.raises(SystemExit) as end:
        failing.run(evaluate.main, ["x", "--captions", "2", "--seeds", "1", "--grid", str(grid)])
    shown = capsys.readouterr()
    assert end.value.code == 2
    assert shown.err == f"t2i: {grid}: No space left on device; free some space there, or write elsewhere\n"
    assert "0.500" in shown.out
    assert not list(tmp_path.iterdir())


class FixedJudge:
    def match(self, images, captions):
        return judge.Match(0.5, 0.25, 1.0)
