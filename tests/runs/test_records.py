"""A checkpoint vouches for the records of the steps before it: a run continues from one whose records are there."""

import json
import shutil

import pytest
import torch

from t2i.config import ConfigError
from t2i.runs import checkpoints
from t2i.runs.records import lost, records

LINES = [json.dumps({"step": step, "train/loss": 1.0}) + "\n" for step in range(11)]


@pytest.fixture
def run(tmp_path):
    """The folder of a run with checkpoints of steps 5 and 10, whose second one vouches for more records."""
    run = tmp_path / "run"
    for kind, suffix in (("validation", "parquet"), ("samples", "png")):
        (run / kind).mkdir(parents=True)
        for step in (0, 5, 10):
            (run / kind / f"step-{step:06d}.{suffix}").write_bytes(b"x" * (step + 1))
    for step in (5, 10):
        (run / "metrics.jsonl").write_text("".join(LINES[: step + 1]))
        checkpoints.save(run / "checkpoints", step, {}, keep=2, vouched=records(run, step))
    return run


def test_the_records_of_later_steps_do_not_count(run):
    assert records(run, 5).keys() == {
        "metrics.jsonl",
        *("validation/step-000000.parquet", "validation/step-000005.parquet"),
        *("samples/step-000000.png", "samples/step-000005.png"),
    }
    assert lost(run, records(run, 10)) == []


def test_the_newest_checkpoint_is_taken_if_its_records_are_there(run):
    assert checkpoints.resume(run / "checkpoints", {}) == 10
    (run / "metrics.jsonl").write_text("".join(LINES) + LINES[3])  # what was logged after it does not matter
    assert checkpoints.resume(run / "checkpoints", {}) == 10


@pytest.mark.parametrize("name", ["validation/step-000010.parquet", "samples/step-000010.png", "metrics.jsonl"])
@pytest.mark.parametrize("how", ["missing", "empty", "short"])
def test_the_one_before_is_taken_if_records_are_lost_after_it(run, name, how, caplog):
    file, content = run / name, (run / name).read_bytes()
    if how == "short" or name == "metrics.jsonl":  # without metrics.jsonl, the other one lacks records, too
        file.write_bytes(content[:-1])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    assert checkpoints.resume(run / "checkpoints", {}) == 5
    assert f"records of the steps before step-000010 are lost ({name})" in caplog.text


def test_what_every_checkpoint_lacks_is_named_and_the_run_continues_from_the_newest(run, caplog):
    (run / "samples" / "step-000000.png").write_bytes(b"")
    (run / "metrics.jsonl").unlink()
    assert checkpoints.resume(run / "checkpoints", {}) == 10
    assert "records of the steps before step-000010 are lost (metrics.jsonl, samples/step-000000.png)" in caplog.text
    assert "the run continues from step-000010 without these records" in caplog.text
    assert not (run / "samples" / "step-000000.png").exists()  # nothing trips over what is left of it


def test_checkpoints_of_older_versions_vouch_for_records_that_are_not_empty(run):
    shutil.rmtree(run / "checkpoints" / "step-000005")
    manifest = run / "checkpoints" / "step-000010" / "manifest.json"
    manifest.write_text(
        json.dumps({name: value for name, value in json.loads(manifest.read_text()).items() if name != "records"})
    )
    assert checkpoints.resume(run / "checkpoints", {}) == 10
    (run / "samples" / "step-000005.png").write_bytes(b"")
    assert checkpoints.resume(run / "checkpoints", {}) == 10
    assert not (run / "samples" / "step-000005.png").exists()


class Weights:
    """A part of a checkpoint."""

    def __init__(self, *shape):
        self.weight = torch.ones(shape)

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight.copy_(state["weight"])


def test_a_checkpoint_of_other_shapes_is_not_used_though_its_checksums_are_right(tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    checkpoints.save(folder, 5, {"denoiser": Weights(3)}, keep=2)
    checkpoints.save(folder, 10, {"denoiser": Weights(4)}, keep=2)
    assert checkpoints.resume(folder, {"denoiser": Weights(3)}) == 5
    assert "step-000010 can't be loaded" in caplog.text
    with pytest.raises(ConfigError, match=r"no checkpoint in .* can be loaded \(step-000010: .*; step-000005"):
        checkpoints.resume(folder, {"denoiser": Weights(5)})
    assert checkpoints.resume(tmp_path / "nowhere", {}) is None


@pytest.mark.parametrize("content", ["", "[]", "null", "3", '{"files": []}', '{"files": {"a": 1}}', "\0" * 9])
def test_a_checkpoint_whose_manifest_is_damaged_is_not_used(tmp_path, content):
    folder = tmp_path / "checkpoints"
    checkpoints.save(folder, 5, {"denoiser": Weights(3)}, keep=2)
    (checkpoints.save(folder, 10, {"denoiser": Weights(3)}, keep=2) / "manifest.json").write_text(content)
    assert checkpoints.resume(folder, {"denoiser": Weights(3)}) == 5
