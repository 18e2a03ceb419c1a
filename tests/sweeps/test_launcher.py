"""Sweeps as a user runs them: jobs die in every way, the sweep dies, and the same command completes what is missing."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
from helpers.runs import untimed
from omegaconf import OmegaConf
from safetensors.torch import load_file


def runs(sweep: Path) -> dict[str, dict]:
    return {file.parent.name: json.loads(file.read_text()) for file in sweep.glob("*/run.json")}


def weights(run: Path) -> dict:
    return load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def measured(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return untimed(lines)


@pytest.mark.slow
def test_a_sweep_in_which_everything_dies_is_completed_by_the_same_command(command, tmp_path):
    seeds = "seed=0,1,2,3,4,5"
    settings = ("--config-dir", "options", "loss=saboteur", seeds, "save_every=2", "steps=6")
    deeds = tmp_path / "deeds"
    deeds.mkdir()
    quiet = command(*settings, f"loss.folder={deeds}", "sweep=quiet")
    output = quiet.communicate()[0]
    assert quiet.returncode == 0, output

    for seed, deed in {0: "raise", 1: "exit", 2: "kill", 4: "kill the sweep"}.items():
        (deeds / str(seed)).write_text(deed)
    killed = command(*settings, f"loss.folder={deeds}", "sweep=rough")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    jobs = runs(tmp_path / "multirun/rough")
    assert jobs["seed-0"]["error"] == "RuntimeError: the fourth step failed"
    assert jobs["seed-1"]["error"] == "SystemExit: 3"
    assert jobs["seed-2"]["error"] == "killed by SIGKILL (out of memory?)"
    assert jobs["seed-3"]["state"] == "finished"
    untouched = jobs["seed-3"]["ended"], (tmp_path / "multirun/rough/seed-3/metrics.jsonl").stat().st_mtime_ns

    again = command(*settings, f"loss.folder={deeds}", "sweep=rough")
    output = again.communicate()[0]
    assert again.returncode == 0, output
    assert "6 finished" in output
    jobs = runs(tmp_path / "multirun/rough")
    assert {info["state"] for info in jobs.values()} == {"finished"}
    assert untouched == (
        jobs["seed-3"]["ended"],
        (tmp_path / "multirun/rough/seed-3/metrics.jsonl").stat().st_mtime_ns,
    )
    for name in jobs:
        quiet, rough = tmp_path / "multirun/quiet" / name, tmp_path / "multirun/rough" / name
        assert measured(quiet) == measured(rough)
        expected, got = weights(quiet), weights(rough)
        assert all((expected[key] == got[key]).all() for key in expected)


@pytest.mark.slow
def test_jobs_that_pause_have_not_failed(command):
    output = (sweep := command("seed=0,1", "steps=6", "sweep=early", "stop_at=2")).communicate()[0]
    assert sweep.returncode == 0, output
    assert "2 of 2 jobs have paused; the same command goes on with them (without stop_at, if that was given)" in output
    assert "failed" not in output


@pytest.mark.slow
def test_two_jobs_at_once_and_the_end_names_what_failed(command, tmp_path):
    deeds = tmp_path / "deeds"
    deeds.mkdir()
    (deeds / "1").write_text("raise")
    settings = ("--config-dir", "options", "loss=saboteur", f"loss.folder={deeds}", "seed=0,1,2", "steps=6")
    sweep = command(*settings, "sweep=two", "hydra.launcher.n_jobs=2")
    output = sweep.communicate()[0]
    assert sweep.returncode == 1
    assert re.search(r"seed-1 .* failed: RuntimeError: the fourth step failed", output)
    assert "2 finished · 1 failed" in output
    assert "t2i: 1 of 3 jobs failed; run the same command again to retry them" in output
    assert "Traceback" not in output
    other = command(*settings, "sweep=two", "batch_size=4", "micro_batch_size=4")
    output = other.communicate()[0]
    assert other.returncode == 2
    assert "(batch_size: 8 → 4); use another sweep=NAME" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", ["submitit_local", *(pytest.param(name, marks=pytest.mark.long) for name in ("basic", "joblib"))]
)
def test_other_launchers_use_the_same_folders(command, tmp_path, launcher):
    sweep = command(f"sweep={launcher}", f"hydra/launcher={launcher}", "loss.snr_gamma=1,5", "steps=1")
    output = sweep.communicate()[0]
    assert sweep.returncode == 0, output
    jobs = runs(tmp_path / "multirun" / launcher)
    assert {name: info["state"] for name, info in jobs.items()} == dict.fromkeys(
        ("loss.snr_gamma-1", "loss.snr_gamma-5"), "finished"
    )


@pytest.mark.slow
def test_optuna_goes_on_where_it_stopped_and_a_failed_job_does_not_end_it(command, tmp_path):
    """The search has no storage: the same command asks for the same jobs, and the finished ones answer at once."""
    deeds = tmp_path / "deeds"
    deeds.mkdir()
    (deeds / "0").write_text("raise")  # in the first job, once: all have seed 0
    settings = ("--config-dir", "options", "loss=saboteur", f"loss.folder={deeds}", "sweep=search", "steps=4")
    settings += ("hydra/sweeper=optuna", "optimizer.lr=tag(log, interval(1e-5, 1e-3))")
    first = command(*settings, "hydra.sweeper.n_trials=2")
    output = first.communicate()[0]
    assert first.returncode == 0, output
    before = runs(tmp_path / "multirun/search")
    assert sorted(info["state"] for info in before.values()) == ["failed", "finished"]
    second = command(*settings, "hydra.sweeper.n_trials=3")
    output = second.communicate()[0]
    assert second.returncode == 0, output
    after = runs(tmp_path / "multirun/search")
    assert [info["state"] for info in after.values()] == ["finished"] * 3
    finished = next(name for name, info in before.items() if info["state"] == "finished")
    assert after[finished]["ended"] == before[finished]["ended"]
    best = OmegaConf.load(tmp_path / "multirun/search/optimization_results.yaml").best_value
    assert best == min(info["final"]["val/loss"] for info in after.values())


@pytest.mark.slow
def test_ctrl_c_interrupts_the_jobs_and_leaves_no_process(command, tmp_path):
    sweep = command("sweep=stopped", "seed=0,1", "steps=2000", "save_every=5", "validate_every=0")
    job = tmp_path / "multirun/stopped/seed-0"
    while not list(job.glob("checkpoints/step-*")) and sweep.poll() is None:
        time.sleep(0.05)
    sweep.send_signal(signal.SIGTERM)
    output = sweep.communicate()[0]
    assert sweep.returncode == 128 + signal.SIGTERM, output
    assert "t2i: interrupted; run the same command again to continue" in output
    assert runs(tmp_path / "multirun/stopped")["seed-0"]["state"] == "interrupted"
    assert not (tmp_path / "multirun/stopped/seed-1").exists()


@pytest.mark.slow
def test_equal_values_are_one_job(command, tmp_path):
    sweep = command("optimizer.lr=1e-3,0.001,2e-3", "steps=2", "sweep=equal")
    output = sweep.communicate()[0]
    assert sweep.returncode == 0, output
    assert "1 of 3 jobs have the same values as another one, and are run once" in output
    assert {name: info["state"] for name, info in runs(tmp_path / "multirun/equal").items()} == {
        "optimizer.lr-0.001": "finished",
        "optimizer.lr-0.002": "finished",
    }
