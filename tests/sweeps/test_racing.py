"""Races as a user runs them: with two jobs at once, killed on the way, through another launcher, and gone on with."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from helpers.runs import untimed
from hydra.core.utils import JobReturn, JobStatus
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.sweeps.job import Job
from t2i.sweeps.racing import _error_of

RACE = ("hydra/launcher=racing", "optimizer.lr=1e-6,1e-4,1e-2", "seed=0,1,2", "steps=32", "validate_every=2")
RACE = (*RACE, "validation.items=16", "save_every=4", "hydra.launcher.n_jobs=2")


def record(sweep: Path) -> dict:
    return json.loads((sweep / "race.json").read_text())


def decisions(sweep: Path) -> dict:
    return {key: value for key, value in record(sweep).items() if key not in ("hours", "summary")}


def results(run: Path) -> tuple[list[dict], dict]:
    """The lines of its metrics, and its exported weights if it has finished."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = untimed(lines)
    weights = run / "model/unet/diffusion_pytorch_model.safetensors"
    return kept, load_file(weights) if weights.is_file() else {}


@pytest.mark.slow
@pytest.mark.long
def test_a_race_that_is_killed_twice_ends_as_one_left_alone(command, tmp_path):
    quiet = command("sweep=quiet", *RACE)
    output = quiet.communicate()[0]
    assert quiet.returncode == 0, output
    assert "leads" in output
    assert "Cost: " in output
    assert record(tmp_path / "multirun/quiet")["winner"]

    rough = tmp_path / "multirun/rough"
    for looks in (0, 1):
        race = command("sweep=rough", *RACE)
        while race.poll() is None and not (runs_begun(rough) >= 3 and number_of_looks(rough) >= looks):
            time.sleep(0.05)
        time.sleep(0.7)  # in the middle of a job
        os.kill(race.pid, signal.SIGKILL)
        race.communicate()
    last = command("sweep=rough", *RACE)
    output = last.communicate()[0]
    assert last.returncode == 0, output

    assert decisions(rough) == decisions(tmp_path / "multirun/quiet")
    kept = sorted(run.parent.name for run in (tmp_path / "multirun/quiet").glob("*/run.json"))
    assert kept == sorted(run.parent.name for run in rough.glob("*/run.json"))
    for name in kept:
        lines, weights = results(tmp_path / "multirun/quiet" / name)
        other_lines, other_weights = results(rough / name)
        assert other_lines == lines
        assert weights.keys() == other_weights.keys()
        assert all(weights[key].equal(other_weights[key]) for key in weights)

    everything = command("sweep=rough", *(each for each in RACE if "racing" not in each))
    output = everything.communicate()[0]
    assert everything.returncode == 0, output
    states = [json.loads(file.read_text())["state"] for file in rough.glob("*/run.json")]
    assert states == ["finished"] * 9, "hydra/launcher=processes goes on with what a race has stopped"


@pytest.mark.parametrize("status", JobStatus)
def test_a_job_that_fails_elsewhere_before_its_run_begins_says_why(tmp_path, status):
    """Submitit reports success for it, and Hydra's result holds the error."""
    job, result = Job(tmp_path, [], steps=4, validate_every=2, seed=0), JobReturn(overrides=["seed=0"])
    result.status, result.return_value = status, ConfigError("no such data")
    job.read_end(_error_of(result))
    assert job.state == "failed"
    assert ("no such data" in job.reason) == (status == JobStatus.FAILED)


def runs_begun(sweep: Path) -> int:
    return len(list(sweep.glob("*/run.json")))


def number_of_looks(sweep: Path) -> int:
    return len(record(sweep)["looks"]) if (sweep / "race.json").is_file() else 0


@pytest.mark.slow
@pytest.mark.long
def test_a_race_through_another_launcher_takes_the_same_decisions_also_if_killed(command, tmp_path):
    arguments = ("hydra/launcher=racing", "optimizer.lr=1e-4,1e-2", "seed=0,1", "steps=16", "validate_every=2")
    arguments = (*arguments, "validation.items=16", "hydra.launcher.rounds=[0.5]")
    joblib = ("hydra.launcher.via=joblib", "hydra.launcher.via_options={n_jobs: 2}")
    for name, extra in {"here": (), "there": joblib}.items():
        race = command(f"sweep={name}", *arguments, *extra)
        output = race.communicate()[0]
        assert race.returncode == 0, output

    killed = command("sweep=killed", *arguments, *joblib)
    while killed.poll() is None and runs_begun(tmp_path / "multirun/killed") < 2:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()  # its workers go on for a while
    again = command("sweep=killed", *arguments, *joblib)
    output = again.communicate()[0]
    assert again.returncode == 0, output
    assert decisions(tmp_path / "multirun/here") == decisions(tmp_path / "multirun/there")
    assert decisions(tmp_path / "multirun/here") == decisions(tmp_path / "multirun/killed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("seed=0,1",), "a race compares settings; vary one besides the seed"),
        (("optimizer.lr=1e-4,1e-3",), "a race begins with 2 seeds of every setting"),
        (("optimizer.lr=1e-4,1e-3", "seed=0,1", "validate_every=0"), "a race compares validations; set validate_every"),
        (("steps=4,8", "seed=0,1"), "steps is varied"),
        (("optimizer.lr=1e-4,1e-3", "seed=0,1", "early_stop.patience=3"), "set early_stop.patience=null"),
        (("optimizer.lr=1e-4,1e-3", "seed=0,1", "hydra.launcher.via=slurm"), "slurm"),
    ],
)
def test_what_makes_no_race_is_refused_before_anything_runs(command, tmp_path, arguments, message):
    race = command("sweep=none", "hydra/launcher=racing", *arguments)
    output = race.communicate()[0]
    assert race.returncode != 0
    assert message in output
    assert "Traceback" not in output
    assert not list((tmp_path / "multirun").glob("none/*/run.json"))
