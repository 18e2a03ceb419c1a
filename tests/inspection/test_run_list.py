"""Runs as a list, and which failed ones may be deleted."""

import io
import json
import os

import pytest
from filelock import FileLock
from helpers.synthetic import write_run

from t2i.cli import runs
from t2i.comparison.results import read_results
from t2i.config import ConfigError
from t2i.inspection.deletion import choose, delete
from t2i.inspection.run_list import as_json, grouped, last_step


@pytest.fixture
def multirun(tmp_path, monkeypatch):
    """A sweep of four jobs, and runs of no sweep in every state."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "multirun"
    for gamma in (1, 5):
        for seed in (0, 1):
            write_run(home / "gamma" / f"g{gamma}s{seed}", f"loss.snr_gamma={gamma}", f"seed={seed}", better=gamma / 50)
    (home / "gamma" / "sweep.json").write_text("{}")
    write_run(home / "mine", "optimizer.lr=1e-3", "run=mine", "log_every=1", started="2026-02-01T00:00:00+0000")
    write_run(home / "broken", state="failed", error="ValueError: \x1b[31mno such column", validated=(0,))
    write_run(home / "half", state="interrupted", validated=(0, 100))
    (home / "torn").mkdir()
    (home / "torn" / "run.json").write_text("{")
    (home / "early" / ".hydra").mkdir(parents=True)
    for path in (home / "early", home / "early" / ".hydra"):
        os.utime(path, (1e9, 1e9))
    return home


def test_sweeps_are_groups_and_the_newest_comes_first(multirun):
    groups = grouped(read_results([multirun]))
    assert [group.name for group in groups] == ["", "gamma"]
    assert groups[0].rows[0].name == "mine"
    assert groups[1].counts == "4 finished"
    assert groups[0].counts == "1 finished, 1 interrupted, 1 failed, 1 never begun, 1 unreadable"


def test_runs_of_a_sweep_have_what_differs_and_others_what_was_typed(multirun):
    groups = grouped(read_results([multirun]), "name")
    settings = {row.name: row.settings for group in groups for row in group.rows}
    assert settings["g1s0"] == "snr_gamma=1 seed=0"
    assert settings["g5s1"] == "snr_gamma=5 seed=1"
    assert settings["mine"] == "optimizer.lr=1e-3"  # neither where it is nor what is logged


def test_the_losses_are_those_that_compare_shows(multirun):
    results = read_results([multirun])
    rows = {row["name"]: row for row in as_json(grouped(results))}
    for run in results:
        if run.state in ("finished", "interrupted"):
            assert rows[run.name]["loss"] == run.latest["val/loss"]
            assert rows[run.name]["ema_loss"] == run.latest["val/ema/loss"]
    assert rows["torn"]["loss"] is None
    best, *_ = grouped([run for run in results if run.folder.parent.name == "gamma"], "loss")[0].rows
    assert best.name.startswith("g5")


@pytest.mark.parametrize("width", ["60", "160"])
def test_the_table_fits_names_reasons_and_shows_no_control_characters(multirun, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    runs.main([])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= int(width)
    assert "torn: " in shown
    assert "never begun" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_json_is_what_scripts_read(multirun, capsys):
    runs.main(["--json", "multirun/gamma", "--sort", "loss"])
    told = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in told] == ["finished"] * 4
    assert told[0]["step"] == told[0]["steps"] == 200


def test_only_failed_runs_are_deleted(multirun, capsys):
    runs.main(["--delete-failed", "--yes"])
    assert "deleted" in capsys.readouterr().out
    assert sorted(path.name for path in multirun.iterdir()) == ["gamma", "half", "mine", "torn"]


def test_a_folder_in_which_a_run_may_be_about_to_begin_is_kept(multirun):
    (multirun / "early" / "train.log").touch()
    assert [run.name for run in choose(read_results([multirun])).delete] == ["broken"]


def test_without_a_terminal_nobody_is_asked_and_nothing_deleted(multirun, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ConfigError, match="add --yes"):
        runs.main(["--delete-failed"])
    assert "no such column" in capsys.readouterr().out
    assert (multirun / "broken").is_dir()


def test_what_another_run_goes_on_from_is_kept(multirun):
    """A chain of failed runs is needed as a whole if the last of it lives."""
    second = {"ancestors": [{"run": "../broken", "step": 100}], "parent": {"run": "../broken", "step": 100}}
    write_run(multirun / "second", state="failed", **second)
    only_weights = {"parent": {"run": "../second", "step": 100, "only": "weights"}, "ancestors": []}
    write_run(multirun / "alive", **only_weights)
    elsewhere = read_results([multirun / "broken", multirun / "second"])
    choice = choose(elsewhere, read_results([multirun]))
    assert choice.delete == []
    assert {run.name: why for run, why in choice.keep.items()} == {
        "broken": "second goes on from it",
        "second": "alive goes on from it",
    }


def test_jobs_of_a_sweep_at_work_and_runs_with_unreadable_relatives_are_kept(multirun):
    write_run(multirun / "gamma" / "bad", state="failed")
    write_run(multirun / "gamma" / "busy", state="running")
    (multirun / "broken" / "checkpoints" / "step-000100").mkdir(parents=True)
    (multirun / "broken" / "checkpoints" / "step-000100" / "manifest.json").write_text("{}")
    (multirun / "gamma" / "busy" / ".lock").touch()
    with FileLock(multirun / "gamma" / "busy" / ".lock"):
        choice = choose(read_results([multirun]))
    assert [run.name for run in choice.delete] == ["early"]
    reasons = {run.folder.name: why for run, why in choice.keep.items()}
    assert "its sweep is at work" in reasons["bad"]
    assert "torn can't be read" in reasons["broken"]


def test_a_run_that_has_begun_again_is_not_deleted(multirun):
    (failed,) = [run for run in read_results([multirun]) if run.folder.name == "broken"]
    with FileLock(multirun / "broken" / ".lock"), pytest.raises(ConfigError, match="in use"):
        delete(failed)
    info = json.loads((multirun / "broken" / "run.json").read_text())
    (multirun / "broken" / "run.json").write_text(json.dumps(info | {"state": "finished"}))
    with pytest.raises(ConfigError, match="is finished by now"):
        delete(failed)
    assert (multirun / "broken").is_dir()


def test_nothing_behind_a_link_is_deleted(multirun, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    (multirun / "broken" / "link").symlink_to(precious)
    runs.main(["--delete-failed", "--yes"])
    assert not (multirun / "broken").exists()
    assert (precious / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["--yes"], "--yes is for --delete-failed"),
        (["--json", "--delete-failed"], "leave it out"),
    ],
)
def test_mistakes_are_named(arguments, message, multirun):
    with pytest.raises(ConfigError, match=message):
        runs.main(arguments)


def test_the_step_of_an_interrupted_run_is_that_of_its_checkpoint(multirun):
    (multirun / "half" / "checkpoints" / "step-000112").mkdir(parents=True)
    (multirun / "half" / "checkpoints" / "step-000115.partial").mkdir()
    (run,) = read_results([multirun / "half"])
    assert last_step(run) == 112
