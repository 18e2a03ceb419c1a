import json
import shutil

import numpy as np
import pytest
from helpers.runs import compose
from helpers.synthetic import write_run

from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.config import ConfigError
from t2i.config.checks import check
from t2i.experiment.plan import make_plan
from t2i.training.early_stop import EarlyStop, early_stop_of, in_words


def lines(*values, name="val/loss"):
    return [{"step": 10 * i, name: value} for i, value in enumerate(values)]


def test_the_run_ends_when_nothing_has_improved_for_so_many_validations():
    rule = EarlyStop(2, "val/loss")
    values = [1.0, 0.8, 0.9, 0.7, 0.75, 0.7, 0.6]  # equal is no improvement
    ends = [rule.verdict(lines(*values[: i + 1])) is not None for i in range(len(values))]
    assert ends == [False, False, False, False, False, True, False]
    verdict = rule.verdict(lines(*values[:6]))
    assert (verdict["step"], verdict["best_step"], verdict["best_value"]) == (50, 30, 0.7)
    assert "at step 50 of 100: val/loss has not improved in 2 validations" in in_words(verdict, 100)
    assert EarlyStop(None, "val/loss").verdict(lines(1.0, 2.0, 3.0)) is None


def test_lines_without_the_metric_do_not_count_and_nan_is_no_improvement():
    rule = EarlyStop(1, "val/loss")
    assert rule.verdict([*lines(1.0), {"step": 5, "train/loss": 0.1}]) is None
    assert rule.verdict([{"step": 5, "train/loss": 0.1}]) is None
    assert rule.verdict(lines(np.nan, 1.0)) is None
    assert rule.verdict(lines(1.0, np.nan)) is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["early_stop.metric=val/gap"],
            "early_stop.metric=val/gap is not measured in this run; choose from val/loss",
        ),
        (["early_stop.metric=ref/loss"], "ref/loss is not measured .*validation.reference add others"),
        (["early_stop.metric=val/ema/loss", "ema=none"], "val/ema/loss is not measured in this run; choose from val/l"),
        (["validation.images=train"], "val/loss is not measured in this run; choose from val/train_loss"),
        (["validate_every=0"], "early_stop.patience=2 counts validations, and validate_every=0 makes none"),
    ],
)
def test_a_metric_that_is_not_measured_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(compose("early_stop.patience=2", *overrides))


def test_what_is_measured_can_end_a_run():
    for metric in ("val/gap_since_start", "val/ema/train_loss", "ref/ema/loss"):
        more = "validation.train_items=4", "validation.reference=openmoji_known"
        assert early_stop_of(compose("early_stop.patience=2", f"early_stop.metric={metric}", *more), True).patience == 2
    with pytest.raises(ConfigError, match=r"early_stop.patience=0 must be at least 1, or null to go to the end"):
        check(compose("early_stop.patience=0"), 1)


def test_compare_says_which_runs_were_stopped_early(tmp_path):
    stopped = {"step": 100, "metric": "val/loss", "best_step": 0}
    write_run(tmp_path / "short", "loss.snr_gamma=1", validated=(0, 100), early_stop=stopped)
    write_run(tmp_path / "long", "loss.snr_gamma=5")
    comparison = compare(read_results([tmp_path]))
    assert not comparison.left_out
    (warning,) = [text for text in comparison.warnings if text.startswith("Stopped early")]
    assert "short at step 100 of 200" in warning
    assert "--step 100 compares all runs at that step" in warning
    assert not any(text.startswith("Stopped early") for text in compare(read_results([tmp_path]), step=100).warnings)


@pytest.mark.slow
def test_a_run_that_gets_worse_ends_as_a_finished_run_and_resumes_exactly(train, tmp_path):
    often = ("steps=8", "validate_every=2", "sample_every=8", "save_every=0")
    worse = (*often, "optimizer.lr=1.0", "early_stop.patience=2")
    run = train(tmp_path / "once", *worse)
    assert run.finished
    assert run.info["early_stop"]["step"] == run.metrics()[-1]["step"] == 4
    assert run.info["early_stop"]["best_step"] == 0
    assert [file.name for file in sorted(run.checkpoints.iterdir())] == ["step-000004"]
    assert (run.folder / "model" / "model_index.json").is_file()
    assert (run.folder / "samples" / "step-000004.png").is_file()

    paused = train(tmp_path / "twice", *worse, "stop_at=3")
    assert paused.info["state"] == "paused"
    again = train(tmp_path / "twice", *worse)
    assert again.info["early_stop"] == run.info["early_stop"]

    shutil.rmtree(run.folder / "model")  # killed after the checkpoint, before the export
    (run.folder / "run.json").write_text(json.dumps({**run.info, "state": "running", "early_stop": {}}))
    after = train(tmp_path / "once", *worse)
    assert after.info["early_stop"] == run.info["early_stop"]
    assert after.metrics()[-1]["step"] == 4
    assert (run.folder / "model" / "model_index.json").is_file()
