"""The command line that fills the cache."""

import pytest

from t2i.encode import main


def fill(small, tmp_path, *more):
    main([*small, f"cache_dir={tmp_path}", *more])


def files(tmp_path):
    return sorted(file.name for file in tmp_path.rglob("*.arrow"))


def test_a_run_finds_what_was_filled(small, train, tmp_path, capsys):
    fill(small, tmp_path)
    before = files(tmp_path)
    assert len(before) == 4
    printed = capsys.readouterr().out
    assert all(name in printed for name in before)
    train(tmp_path / "run", f"cache_dir={tmp_path}", "steps=0")
    assert files(tmp_path) == before


def test_a_sweep_is_filled_once_for_each_data_set_and_model(small, tmp_path, capsys):
    fill(small, tmp_path, "-m", "loss.snr_gamma=1,5", "dataset.resolution=64,32")
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_captions_of_trained_text_encoders_are_kept_as_tokens(small, train, tmp_path, capsys):
    adapted = ("adapter=lora", "adapter.text_encoder=true")
    fill(small, tmp_path, *adapted)
    before = files(tmp_path)
    train(tmp_path / "run", f"cache_dir={tmp_path}", "steps=0", *adapted)
    assert files(tmp_path) == before


def test_a_mistake_is_one_line(small, tmp_path):
    with pytest.raises(SystemExit, match=r"t2i.encode: model.path=./nowhere holds no pipeline"):
        fill(small, tmp_path, "model.path=./nowhere")
