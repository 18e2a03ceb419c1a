import json
import os

import pytest
from helpers.synthetic import write_run

from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.config import ConfigError


@pytest.fixture
def sweep(tmp_path):
    """Write one run for each text of overrides; returns the comparison of all runs in the folder."""

    def sweep(*runs: str, by=None, baseline=None, step=None, **how):
        for overrides in runs:
            write_run(tmp_path / overrides.replace(" ", "_"), *overrides.split(), **how)
        return compare(read_results([tmp_path]), by, baseline, step)

    return sweep


def labels(comparison):
    return [variant.label for variant in comparison.variants]


GAMMAS = [f"loss.snr_gamma={gamma} seed={seed}" for gamma in (20, 5, 1) for seed in (0, 1)]


def test_seeds_are_pooled_and_variants_sorted_by_value(sweep):
    comparison = sweep(*GAMMAS)
    assert labels(comparison) == ["snr_gamma=1", "snr_gamma=5", "snr_gamma=20"]
    assert [[run.seed for run in variant.runs.values()] for variant in comparison.variants] == [[0, 1]] * 3
    assert comparison.notes[0] == "Variants by loss.snr_gamma (the keys that differ)."
    assert not comparison.left_out
    assert not comparison.warnings


def test_the_baseline_is_plain_mse_or_else_the_first(sweep, tmp_path):
    first = sweep(*GAMMAS)
    assert first.baseline.label == "snr_gamma=1"
    assert first.notes[-1] == "Baseline: snr_gamma=1 (the first; --baseline chooses another)."
    assert sweep("loss=mse").baseline.label == "mse"


@pytest.mark.parametrize(
    ("baseline", "label"),
    [
        ("loss=mse", "mse lr=1e-3"),
        ("loss.snr_gamma=5,optimizer.lr=1e-3", "minsnr snr_gamma=5 lr=1e-3"),
        ("snr_gamma=5.0,lr=0.0001", "minsnr snr_gamma=5 lr=1e-4"),
    ],
)
def test_a_baseline_is_chosen_by_its_values(baseline, label, sweep):
    runs = [
        "loss=mse optimizer.lr=1e-3",
        *(f"loss=minsnr loss.snr_gamma=5 optimizer.lr={lr}" for lr in ("1e-3", "1e-4")),
    ]
    assert sweep(*runs, baseline=baseline).baseline.label == label


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("loss.snr_gamma=7", r"--baseline loss.snr_gamma=7 matches none of:\n  snr_gamma=1\n  snr_gamma=5\n"),
        ("loss=minsnr", r"--baseline loss=minsnr matches several variants:\n  snr_gamma=1\n"),
        ("loss.gamma=7", r"--baseline loss.gamma is in no run's configuration; the runs differ in loss.snr_gamma"),
        ("mse", r"--baseline mse: must look like loss=mse"),
    ],
)
def test_an_unknown_or_ambiguous_baseline_is_refused_with_what_there_is(baseline, message, sweep):
    with pytest.raises(ConfigError, match=message):
        sweep(*GAMMAS, baseline=baseline)


NEW = {"images": "a", "autoencoder": "b", "log_snr": [1.0, -1.0], "seed": 0}
OLD = {"timesteps": [1, 2], "snr": [1.0, 0.5]}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (OLD, OLD, "on different held-out images, timesteps, noise or noise schedules, so .* scheduler and validation"),
        (OLD, NEW, "at .*, some at timesteps .* as t2i 0.1 did, so .*the later ones with validation.log_snr=null"),
        (NEW, NEW | {"autoencoder": "c"}, "in the latents of different autoencoders, so .* the same model.path"),
        (
            NEW,
            NEW | {"seed": 1, "log_snr": [2.0]},
            "at different noise levels and with different noise, so .*log_snr and",
        ),
        (NEW, NEW | {"images": "c"}, "on different held-out images, so .* the same dataset and validation.items"),
    ],
)
def test_other_batteries_are_refused_with_the_reason_and_their_runs(first, second, message, sweep):
    sweep("loss.snr_gamma=1", "loss.snr_gamma=5", battery={"hash": "one", **first})
    with pytest.raises(ConfigError, match=rf"validated {message}.*\n  battery one: .*=1, .*=5\n  battery two: .*=7"):
        sweep("loss.snr_gamma=7", battery={"hash": "two", **second})


def test_a_run_done_twice_counts_once_the_newer(sweep, tmp_path):
    write_run(tmp_path / "again", "loss.snr_gamma=1", better=0.1, started="2026-02-02T00:00:00+0000")
    comparison = sweep("loss.snr_gamma=1", "loss.snr_gamma=5")
    assert [run.name for run in comparison.runs] == ["again", "loss.snr_gamma=5"]
    reason = "again is a newer run of the same variant and seed"
    assert [(run.name, why) for run, why in comparison.left_out.items()] == [("loss.snr_gamma=1", reason)]
    assert comparison.warnings == [f"loss.snr_gamma=1 is not compared: {reason}."]


def test_runs_without_a_partner_are_named(sweep):
    comparison = sweep(*GAMMAS, "loss.snr_gamma=1 seed=2", "loss.snr_gamma=5 seed=3", "loss.snr_gamma=7 seed=9")
    seven = comparison.variants[2]
    assert comparison.pairs(comparison.variants[1]) == [(0,), (1,)]
    assert comparison.pairs(seven) == []
    assert comparison.warnings == [
        "snr_gamma=7 is not tested: it has no seed in common with snr_gamma=1.",
        "snr_gamma=5: the runs with seed=3 are left out of the test, as the baseline has none.",
        "snr_gamma=5, snr_gamma=20: no runs with seed=2, so the baseline's are left out of the test.",
    ]


def test_seeds_can_be_compared_too(sweep):
    comparison = sweep("seed=0", "seed=1", by=["seed"])
    assert labels(comparison) == ["seed=0", "seed=1"]
    assert comparison.pairs(comparison.variants[1]) == [(None,)]


def test_another_difference_pairs_the_runs_and_is_named(sweep):
    runs = [f"loss.snr_gamma={gamma} optimizer.lr={lr}" for gamma in (1, 5) for lr in ("1e-3", "1e-4")]
    comparison = sweep(*runs, by=["loss.snr_gamma"])
    assert labels(comparison) == ["snr_gamma=1", "snr_gamma=5"]
    assert sorted(comparison.pairs(comparison.variants[1])) == [(0, 1e-4), (0, 1e-3)]
    assert comparison.warnings == [
        "Runs of one variant differ in optimizer.lr (1e-3, 1e-4); they are paired by it as by the seed."
    ]


def test_runs_of_other_code_or_machines_are_compared_with_a_warning(sweep):
    sweep("loss.snr_gamma=1", "loss.snr_gamma=5", packages={"torch": "2.13.0", "numpy": "2.4"})
    comparison = sweep("loss.snr_gamma=7", packages={"torch": "2.12.0", "numpy": "2.4"})
    assert comparison.warnings == ["The runs also differ in packages.torch: 2.13.0 in 2 runs, 2.12.0 in 1 run."]


def test_unfinished_runs_are_left_out_with_their_reason_and_the_way_to_compare_them(sweep, tmp_path):
    write_run(tmp_path / "x", "loss.snr_gamma=7", state="stopped", validated=(0, 100), stopped="worse than the median")
    (tmp_path / "y" / ".hydra").mkdir(parents=True)
    comparison = sweep(*GAMMAS)
    assert {run.name: why for run, why in comparison.left_out.items()} == {
        "x": "worse than the median",
        "y": "it never started; see train.log",
    }
    assert {run.step for run in comparison.runs} == {200}
    assert comparison.warnings == ["--step 100 compares the unfinished runs too, all at that step."]

    early = sweep(step=100)
    assert {run.step for run in early.runs} == {100}
    assert [run.name for run in early.left_out] == ["y"]
    assert early.warnings[0] == "All runs are compared at step 100, finished or not."
    with pytest.raises(ConfigError, match="--step 50: no run was validated there; choose from 0, 100, 200"):
        sweep(step=50)


def test_a_sweep_in_progress_is_compared_at_the_last_step_that_all_runs_reached(sweep):
    sweep("loss.snr_gamma=1")
    sweep("loss.snr_gamma=5", state="interrupted", validated=(0, 100))
    comparison = sweep("loss.snr_gamma=7", state="failed", validated=(0,), error="ValueError: no")
    assert [(run.name, run.step) for run in comparison.runs] == [("loss.snr_gamma=1", 100), ("loss.snr_gamma=5", 100)]
    assert comparison.warnings == ["Too few runs have finished; all are compared at step 100, which all reached."]
    assert [run.state for run in comparison.left_out] == ["failed"]


def test_runs_of_other_length_are_compared_at_their_ends_with_a_warning(sweep):
    sweep("steps=200")
    comparison = sweep("steps=100", validated=(0, 50, 100))
    assert labels(comparison) == ["steps=100", "steps=200"]
    assert [run.step for run in comparison.runs] == [100, 200]
    assert comparison.warnings == ["The runs differ in length, and each is compared at its end: steps 100, 200."]


def test_a_run_that_diverged_is_left_out(sweep, tmp_path):
    run = write_run(tmp_path / "diverged", "loss.snr_gamma=7", better=float("nan"))
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    comparison = sweep(*GAMMAS)
    assert [(run.name, why) for run, why in comparison.left_out.items()] == [
        ("diverged", "its validation errors are not finite: training diverged")
    ]


def test_a_finished_run_without_its_last_errors_is_left_out(sweep, tmp_path):
    run = write_run(tmp_path / "old", "loss.snr_gamma=7")
    (run / "validation" / "step-000200.parquet").unlink()
    assert [run.name for run in sweep(*GAMMAS).left_out] == ["old"]


def test_where_nothing_can_be_compared_the_states_of_the_runs_are_listed(sweep):
    with pytest.raises(ConfigError, match=r"nothing to compare yet\n  loss=mse: failed, ValueError: no"):
        sweep("loss=mse", state="failed", validated=(), error="ValueError: no")


def test_a_base_that_is_quantised_otherwise_is_told_where_it_may_explain_a_difference(sweep):
    comparison = sweep("model.quantize=null optimizer.lr=1e-4", "model.quantize=nf4 optimizer.lr=1e-3")
    (warning,) = [warning for warning in comparison.warnings if "model.quantize" in warning]
    assert "in model.quantize (nf4, not null) and in optimizer.lr: quantising may explain the difference" in warning


def test_quantising_alone_is_no_confound(sweep):
    assert sweep("model.quantize=null", "model.quantize=nf4").warnings == []


def test_what_a_race_said_is_a_note(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"race/{seed}", f"seed={seed}")
    (tmp_path / "race/race.json").write_text(json.dumps({"summary": ["Best: lr=1 (step 8 of 8).", "Cost: 8 steps."]}))
    assert "Race in race: Best: lr=1 (step 8 of 8). Cost: 8 steps." in compare(read_results([tmp_path])).notes
    os.utime(tmp_path / "race/race.json", (0, 0))
    assert compare(read_results([tmp_path])).notes[-1].endswith("the command of the race says what they change.")
    (tmp_path / "race/race.json").write_text('{"summary": 3}')
    damaged = compare(read_results([tmp_path])).notes[-1]
    assert "race.json: summary is of the wrong type, int; delete this file, which the race writes anew" in damaged
