"""W&B without a network: what is in its files is read back with W&B's own command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from t2i.tracking import Wandb

WANDB = Path(sys.executable).parent / "wandb"


def inspect(folder: Path) -> list[dict]:
    """The records of the offline run in `folder`, each under the name of its type."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    command = [WANDB, "leet", "inspect", "--json", file]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in output.stdout.splitlines()]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tracker = Wandb(project="t2i", mode="auto")
    config = {"loss": {"snr_gamma": 5.0}, "optimizer": {"lr": 1e-4}}
    run_id = tracker.start(folder, "snr_gamma-5", "gamma", ["loss.snr_gamma=5"], config, None)
    tracker.log(0, {"val/loss": 1.0})
    tracker.images(10, "samples", [Image.new("RGB", (8, 8), color) for color in ("red", "blue")], ["red apple", "sea"])
    tracker.log(10, {"train/loss": 0.5})
    tracker.finish(succeeded=True)
    return run_id, inspect(folder)


def of_type(records, kind):
    return [record[kind] for record in records if record["type"] == kind]


def test_config_group_and_tags_are_there_for_a_dashboard(records):
    run_id, records = records
    (run,) = of_type(records, "run")
    assert run["run_id"] == run_id
    assert (run["display_name"], run["run_group"], run["tags"]) == ("snr_gamma-5", "gamma", ["loss.snr_gamma=5"])
    assert run["config"]["update"]["loss"] == {"snr_gamma": 5.0}
    assert run["config"]["update"]["optimizer"] == {"lr": 1e-4}


def test_curves_and_pictures_share_the_step_as_axis(records):
    metrics = of_type(records[1], "metric")
    assert {"glob_name": "*", "options": {"defined": True, "step_sync": True}, "step_metric": "step"} in metrics
    first, last = (row["item"] for row in of_type(records[1], "history"))
    assert (first["step"], first["_step"], first["val/loss"]) == (0, 0, 1.0)
    assert (last["step"], last["_step"], last["train/loss"]) == (10, 10, 0.5)
    assert last["samples.captions"] == ["red apple", "sea"]
    assert len(set(last["samples.filenames"])) == 2


def test_without_a_key_it_is_offline_and_does_not_ask(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    tracker = Wandb(project="t2i", mode="auto")
    tracker.start(tmp_path, "name", None, [], {}, None)
    tracker.finish(succeeded=False)
    (end,) = of_type(inspect(tmp_path), "exit")
    assert end["exit_code"] == 1


def test_online_without_a_network_falls_back_to_offline(monkeypatch, tmp_path, caplog):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    tracker = Wandb(project="t2i", mode="online")
    tracker.start(tmp_path, "name", None, [], {}, None)
    tracker.log(0, {"train/loss": 1.0})
    tracker.finish(succeeded=True)
    assert "the run goes on offline" in caplog.text
    assert of_type(inspect(tmp_path), "history")


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"tracker.mode=on is not known; choose from auto, online"):
        Wandb(project="t2i", mode="on")
