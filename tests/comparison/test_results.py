from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from filelock import FileLock
from helpers.synthetic import errors, write_run

from t2i.comparison.results import read_results
from t2i.config import ConfigError
from t2i.evaluation.metrics import Metric, all_metrics

LOSS = Metric.named("val/loss")


def test_a_run_s_measurements_are_read_back(tmp_path):
    (result,) = read_results([write_run(tmp_path / "run", "loss.snr_gamma=1", "seed=3")])
    assert (result.name, result.state, result.reason, result.step, result.seed) == ("run", "finished", "", 200, 3)
    assert result.config_value("loss") == "minsnr"
    assert result.config_value("loss.snr_gamma") == 1
    assert np.array_equal(result.errors[""], errors(0.3, "run"))
    for metric in [*all_metrics("", 16), *all_metrics("ema/", 16)]:
        assert result.value(metric) == pytest.approx(result.latest[metric.name])
    assert result.change(LOSS) == pytest.approx(result.value(LOSS) / result.lines[0]["val/loss"] - 1)
    assert result.change(LOSS) == pytest.approx(-0.3, abs=0.01)


def test_a_run_at_another_step_has_the_values_measured_there(tmp_path):
    (result,) = read_results([write_run(tmp_path / "run")])
    early = replace(result, step=100)
    assert np.array_equal(early.errors[""], errors(0.15, "run"))
    assert early.value(LOSS) == pytest.approx(early.latest["val/loss"]) == pytest.approx(result.lines[1]["val/loss"])
    assert early.hours == 1.0
    assert early.latest_samples()[0] == 100


def test_a_run_without_averaged_weights_has_no_value_for_them(tmp_path):
    (result,) = read_results([write_run(tmp_path / "run", averaged=False)])
    assert list(result.errors) == [""]
    assert np.isnan(result.value(LOSS.twin))
    assert np.isfinite(result.value(LOSS))


def test_the_curve_has_hours_where_they_were_logged(tmp_path):
    timed, untimed = read_results([write_run(tmp_path / "timed"), write_run(tmp_path / "untimed", hours=False)])
    assert [point[:2] for point in timed.curve(LOSS)] == [(0, 0.0), (100, 1.0), (200, 2.0)]
    assert all(early > late for (*_, early), (*_, late) in pairwise(timed.curve(LOSS)))
    assert np.isnan([untimed.hours, *(hours for _, hours, _ in untimed.curve(LOSS))]).all()


@pytest.mark.parametrize(
    ("state", "info", "reason"),
    [
        ("failed", {"error": "ValueError: no such column"}, "ValueError: no such column"),
        ("stopped", {"stopped": "val/loss has not improved for 3 validations"}, "val/loss has not improved"),
        ("interrupted", {}, "interrupted after step 100 of 200"),
        ("paused", {"paused_at": 100}, "paused after step 100 of 200"),
    ],
)
def test_a_run_that_did_not_finish_says_why(state, info, reason, tmp_path):
    (result,) = read_results([write_run(tmp_path / "run", state=state, validated=(0, 100), **info)])
    assert result.state == state
    assert reason in result.reason
    assert result.step == 100


def test_a_running_run_whose_process_is_gone_was_killed(tmp_path):
    run = write_run(tmp_path / "run", state="running", validated=(0, 100))
    with FileLock(run / ".lock"):
        (result,) = read_results([run])
        assert (result.state, result.reason) == ("running", "still running, at step 100 of 200")
    (result,) = read_results([run])
    reason = "the process died without reporting an error after step 100 of 200"
    assert (result.state, result.reason) == ("killed", reason)


def test_a_job_that_never_began_is_listed(tmp_path):
    write_run(tmp_path / "began")
    (tmp_path / "lost" / ".hydra").mkdir(parents=True)
    (tmp_path / "refused" / ".hydra").mkdir(parents=True)
    (tmp_path / "refused" / "run.json").write_text('{"state": "failed", "error": "loss.snr_gamma=-1 must be positive"}')
    assert [(result.name, result.state, result.reason) for result in read_results([tmp_path])] == [
        ("began", "finished", ""),
        ("lost", "never begun", "it never started; see train.log"),
        ("refused", "failed", "loss.snr_gamma=-1 must be positive"),
    ]


def test_a_torn_line_and_an_unfinished_validation_are_ignored(tmp_path):
    run = write_run(tmp_path / "run", state="running", validated=(0, 100))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 200, "val/lo')
    (run / "validation" / "step-000200.parquet").write_bytes(b"incomplete")
    (result,) = read_results([run])
    assert result.step == 100
    assert len(result.lines) == 2


@pytest.mark.parametrize(("file", "text"), [("run.json", "{torn"), ("config.yaml", "seed: [1")])
def test_a_folder_that_can_not_be_read_is_listed(file, text, tmp_path):
    run = write_run(tmp_path / "run")
    (run / file).write_text(text)
    (result,) = read_results([run])
    assert result.state == "unreadable"
    assert result.reason


def test_damaged_errors_are_named(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "validation" / "step-000200.parquet").write_bytes(b"damaged")
    (result,) = read_results([run])
    with pytest.raises(ConfigError, match=r"step-000200.parquet can't be read"):
        _ = result.errors


def test_every_run_is_found_once_wherever_it_lies(tmp_path):
    write_run(tmp_path / "sweep" / "a")
    write_run(tmp_path / "sweep" / "deeper" / "b")
    paths = [tmp_path / "sweep", tmp_path / "sweep" / "a", tmp_path]
    assert [result.name for result in read_results(paths)] == ["a", "deeper/b"]
    with pytest.raises(ConfigError, match="holds no run"):
        read_results([tmp_path / "sweep", tmp_path / "elsewhere"])
