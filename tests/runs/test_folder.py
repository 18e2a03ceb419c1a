import json

import pytest
from omegaconf import OmegaConf

from t2i.runs.folder import Run, RunExists, changes


def config(**changes):
    return OmegaConf.create({"seed": 0, "loss": {"snr_gamma": 5.0}, "num_workers": 0} | changes)


def test_a_run_is_found_again(tmp_path):
    run = Run(tmp_path / "run", config())
    run.begin()
    run.end("finished", final={"val/loss": 0.25})
    again = Run(tmp_path / "run", config())
    assert again.finished
    assert again.result == 0.25


def test_another_configuration_is_refused_by_the_keys_that_differ(tmp_path):
    run = Run(tmp_path, config())
    run.begin()
    run.log(0, {"val/loss": 1.0})
    with pytest.raises(RunExists, match=r"loss\.snr_gamma: 5\.0 → 1\.0\); use another run=NAME"):
        Run(tmp_path, config(loss={"snr_gamma": 1.0}))
    Run(tmp_path, config(num_workers=2, hub={"push": True}))  # does not change what is computed


def test_the_command_that_goes_on_with_other_settings_is_in_the_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "multirun" / "base"
    run = Run(folder, config(steps=100))
    run.begin(overrides=["steps=100", "loss=minsnr", "run=base"])
    run.log(0, {"val/loss": 1.0})
    with pytest.raises(RunExists, match=r"type: t2i train from=base steps=200 run=base-2$"):
        Run(folder, config(steps=200), overrides=["steps=200", "loss=minsnr", "run=base"])
    with pytest.raises(RunExists, match=r"type: t2i train from=base seed=1 run=base-2$"):
        Run(folder, config(steps=100, seed=1))  # a default has changed: nothing was typed


def test_samples_of_other_prompts_are_not_taken_for_those_of_today(tmp_path):
    first = Run(tmp_path, config(samples={"prompts": ["a"]}))
    first.begin()
    first.log(5, {"val/loss": 1.0})
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-000005.png").touch()
    assert first.samples_since == Run(tmp_path, config(samples={"prompts": ["a"]})).samples_since == -1
    other = Run(tmp_path, config(samples={"prompts": ["b"]}))
    other.begin()
    assert other.samples_since == Run(tmp_path, config(samples={"prompts": ["b"]})).samples_since == 5


def test_a_run_that_failed_before_its_first_step_blocks_nothing(tmp_path):
    first = Run(tmp_path, config())
    first.begin()
    first.end("failed", error="ValueError: no such column")
    second = Run(tmp_path, config(seed=1))
    second.begin()
    second.end("finished", final={"val/loss": 0.5})
    assert "error" not in second.info
    assert Run(tmp_path, config(seed=1)).result == 0.5


@pytest.mark.slow
def test_a_folder_is_worked_in_by_one_process(tmp_path):
    first, second = Run(tmp_path, config()), Run(tmp_path, config())
    with first.claimed(), pytest.raises(RunExists, match=r"is in use by another process"), second.claimed():
        pass
    with second.claimed():
        pass


def test_other_data_is_not_continued(tmp_path):
    run = Run(tmp_path, config())
    run.begin()
    facts = {"data_fingerprint": "a", "battery": {"hash": "b"}, "precision": "fp32"}
    run.refuse_changes(facts)
    run.update(**facts)
    run.log(0, {"val/loss": 1.0})
    run.refuse_changes(facts)
    with pytest.raises(RunExists, match=r"began with a different precision \(fp32 → bf16\)"):
        run.refuse_changes(facts | {"precision": "bf16"})


def test_rewinding_drops_later_and_torn_lines(tmp_path):
    run = Run(tmp_path, config())
    run.begin()
    for step in range(5):
        run.log(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    run.rewind(3)
    assert [line["step"] for line in run.metrics()] == [0, 1, 2, 3]


def test_other_processes_write_nothing(tmp_path):
    run = Run(tmp_path / "run", config(), writes=False)
    run.begin()
    run.log(0, {})
    run.end("failed")
    assert not (tmp_path / "run").exists()


def test_run_json_says_what_ran(tmp_path):
    Run(tmp_path, config()).begin()
    info = json.loads((tmp_path / "run.json").read_text())
    assert info["state"] == "running"
    assert info["packages"]["torch"]
    assert len(info["config_hash"]) == 32


def test_what_changes_no_result_is_no_change():
    """Whole groups, and single settings of a group."""
    before = {"seed": 0, "tracker.mode": "auto", "dataset.keep_shards": 4, "dataset.path": "a", "runs": 1}
    now = {"seed": 0, "tracker.mode": "off", "dataset.keep_shards": 9, "dataset.path": "b", "runs": 2}
    assert list(changes(before, now)) == ["dataset.path", "runs"]
