"""The command line that fills the cache."""

import shutil
import signal
import subprocess
import sys

import pytest

from t2i.config import ConfigError
from t2i.data.packs import Pack
from t2i.encode import main


def fill(small, tmp_path, *more):
    main([*small, f"cache_dir={tmp_path}", *more])


def files(tmp_path):
    return sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("encodings/*/*.safetensors"))


@pytest.mark.slow
def test_a_run_finds_what_was_filled(small, train, tmp_path, capsys):
    fill(small, tmp_path)
    before = files(tmp_path)
    assert len(before) == 4
    printed = capsys.readouterr().out
    assert all(name.rpartition("/")[0] in printed for name in before)
    train(tmp_path / "run", f"cache_dir={tmp_path}", "steps=0")
    assert files(tmp_path) == before


@pytest.mark.slow
def test_a_sweep_is_filled_once_for_each_data_set_and_model(small, tmp_path, capsys):
    fill(small, tmp_path, "-m", "loss.snr_gamma=1,5", "dataset.resolution=64,32")
    assert len(capsys.readouterr().out.splitlines()) == 8


@pytest.mark.slow
def test_captions_of_trained_text_encoders_are_kept_as_tokens(small, train, tmp_path, capsys):
    adapted = ("adapter=lora", "adapter.text_encoder=true")
    fill(small, tmp_path, *adapted)
    before = files(tmp_path)
    train(tmp_path / "run", f"cache_dir={tmp_path}", "steps=0", *adapted)
    assert files(tmp_path) == before


def test_a_mistake_is_one_line(small, tmp_path):
    with pytest.raises(ConfigError, match=r"^model.path=./nowhere holds no pipeline"):
        fill(small, tmp_path, "model.path=./nowhere")


def written(tmp_path):
    return {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}


@pytest.mark.slow
def test_settings_of_training_find_the_same_encodings_and_deleting_them_costs_time_only(train, tmp_path):
    cache = tmp_path / "cache"
    first = train(tmp_path / "first", f"cache_dir={cache}")
    before = written(cache)
    others = ["loss=mse", "optimizer.lr=1e-5", "seed=3", "batch_size=4", "micro_batch_size=2", "steps=1"]
    train(tmp_path / "other", f"cache_dir={cache}", *others)
    assert written(cache) == before
    shutil.rmtree(cache)
    again = train(tmp_path / "again", f"cache_dir={cache}")
    assert {file.name for file in written(cache)} == {file.name for file in before}  # with the same content
    assert again.metrics()[-1]["val/loss"] == first.metrics()[-1]["val/loss"]


KILLED = """
import os, signal, sys
from t2i import encode
from t2i.data import filling
from t2i.models.stable_diffusion import StableDiffusion

filling.PACK_BYTES = 1
encode_images, calls = StableDiffusion.encode, []
def killed(self, pixels):
    calls.append(len(pixels))
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_images(self, pixels)
StableDiffusion.encode = killed
encode.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_where_it_was(small, tmp_path):
    settings = [*small, f"cache_dir={tmp_path / 'cache'}"]
    assert subprocess.run([sys.executable, "-c", KILLED, *settings]).returncode == -signal.SIGKILL
    kept = files(tmp_path / "cache")
    assert kept
    main(settings)
    main([*small, f"cache_dir={tmp_path / 'clean'}"])
    assert set(kept) < set(files(tmp_path / "cache"))
    assert entries(tmp_path / "cache") == entries(tmp_path / "clean")


def entries(cache):
    """All that is stored, to the bit."""
    packs = [Pack(file) for file in cache.glob("encodings/*/*.safetensors")]
    tensors = [
        (pack.about["encoder"], key, name, pack.values[name][start:end].tolist())
        for pack in packs
        for name in pack.names
        for key, start, end in zip(pack.keys, pack.ends[name], pack.ends[name][1:], strict=False)
    ]
    return sorted(tensors)
