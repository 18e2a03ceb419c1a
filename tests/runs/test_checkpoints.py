import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from t2i.optim.ema import EMA
from t2i.optim.trained_weights import hold_weights
from t2i.runs import checkpoints


def parts(value=0.0):
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, value)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    ema = EMA(0.9)
    ema.track(hold_weights(layer), optimizer)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"denoiser": layer, "optimizer": optimizer, "ema": ema}


def same(first, second):
    return json.dumps(first, default=lambda tensor: tensor.tolist()) == json.dumps(second, default=lambda t: t.tolist())


def test_round_trip(tmp_path):
    saved, loaded = parts(1.0), parts(2.0)
    checkpoint = checkpoints.save(tmp_path, 7, saved, keep=2)
    assert checkpoints.load(checkpoint, loaded) == 7
    for name in saved:
        assert same(saved[name].state_dict(), loaded[name].state_dict()), name


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 15, 200000, 1000000):
        checkpoints.save(tmp_path, step, parts(), keep=2)
    assert {folder.name for folder in tmp_path.iterdir()} == {"step-200000", "step-1000000"}
    assert checkpoints.newest(tmp_path).name == "step-1000000"


@pytest.mark.parametrize(("keep", "keep_at", "kept"), [("all", [], {1, 2, 3, 4}), (1, [2, 9], {2, 4})])
def test_all_or_chosen_ones_are_kept(tmp_path, keep, keep_at, kept):
    for step in (1, 2, 3, 4):
        checkpoints.save(tmp_path, step, parts(), keep=keep, keep_at=keep_at)
    assert set(map(checkpoints.step_of, tmp_path.iterdir())) == kept


def damage(file, how):
    content = file.read_bytes()
    changed = {"truncated": content[:-10], "flipped": content[:-1] + bytes([content[-1] ^ 1])}
    file.unlink() if how == "missing" else file.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize("name", ["denoiser.safetensors", "optimizer.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog, how, name):
    whole = checkpoints.save(tmp_path, 5, parts(), keep=2)
    damage(checkpoints.save(tmp_path, 10, parts(), keep=2) / name, how)
    assert checkpoints.newest(tmp_path) == whole
    assert "step-000010 is damaged" in caplog.text


def test_an_unfinished_one_does_not_count(tmp_path):
    checkpoints.save(tmp_path, 5, parts(), keep=2).rename(tmp_path / ".step-000005.tmp")
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.newest(tmp_path / "nowhere") is None


def test_no_pickle_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    checkpoint = checkpoints.save(tmp_path, 5, parts(), keep=2)
    torch.save({"state": Harmful()}, checkpoint / "optimizer.pt")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoints.load(checkpoint, parts())
    assert not (tmp_path / "harm").exists()


def test_the_best_is_kept(tmp_path):
    losses = {}
    for step, loss in ((1, 0.5), (2, 0.3), (3, 0.4), (4, 0.6)):
        losses[step] = loss
        checkpoints.save(tmp_path, step, parts(), keep=1, losses=losses)
    assert {folder.name for folder in tmp_path.iterdir()} == {"step-000002", "step-000004"}


def test_too_little_room_is_found_before_writing(tmp_path, monkeypatch):
    before = checkpoints.save(tmp_path, 5, parts(), keep=1)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"checkpoint of step 10 .*0 MB free.*continues from step-000005"):
        checkpoints.save(tmp_path, 10, parts(), keep=1)
    assert checkpoints.newest(tmp_path) == before
    assert list(tmp_path.iterdir()) == [before]


@pytest.mark.slow
@pytest.mark.parametrize("reported", [True, False])  # whether the file system says beforehand that it is full
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, reported):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr}")
    try:
        small, large = {"denoiser": torch.nn.Linear(100, 100)}, {"denoiser": torch.nn.Linear(1000, 1000)}
        before = checkpoints.save(disk, 5, small, keep=1)
        if not reported:
            monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**12))
        with pytest.raises(
            OSError, match=r"free some disk space and run the same command again: it continues from step-000005"
        ):
            checkpoints.save(disk, 10, large, keep=1)
        assert checkpoints.newest(disk) == before
        assert checkpoints.load(before, small) == 5
    finally:
        subprocess.run(["umount", disk], check=True)
