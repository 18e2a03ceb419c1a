"""What a run says when it goes on, and at its end."""

import pytest

from t2i.experiment.messages import ended, resumed
from t2i.runs.next_steps import next_steps

LINES = [{"step": 0, "val/loss": 0.05}, {"step": 10, "val/loss": 0.04}, {"step": 17, "train/loss": 0.1}]


@pytest.mark.parametrize(
    ("before", "step", "said"),
    [
        ({}, None, ""),
        ({"state": "interrupted"}, 17, "goes on from the checkpoint of step 17 of 40: it was interrupted at step 17"),
        ({"state": "interrupted"}, 19, "goes on from the checkpoint of step 19 of 40: it was interrupted at step 19"),
        (
            {"state": "running"},
            10,
            "goes on from the checkpoint of step 10 of 40: its process died at step 17 without a word; what was logged "
            "after step 10 is done again",
        ),
        (
            {"state": "failed", "error": "OSError: no space"},
            None,
            "begins again at step 0 of 40: it failed at step 17 (OSError: no space), before there was a checkpoint",
        ),
    ],
)
def test_going_on_says_from_where_and_why(before, step, said):
    assert resumed(step, 40, before, LINES) == said


def test_the_end_says_what_came_out_where_it_is_and_what_to_type(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "multirun" / "mine"
    (run / "samples").mkdir(parents=True)
    (run / "samples" / "progress.png").touch()
    (run / "model").mkdir()
    told = ended(run, {"state": "finished"}, LINES, 40)
    assert told[0] == f"finished: {run} · val/loss 0.04000 (-20.0% since step 0)"
    assert told[1] == "images in multirun/mine/samples/progress.png, model in multirun/mine/model"
    assert told[2:] == [
        "to draw images: t2i sample multirun/mine 'a prompt'",
        "to look at its curves, samples and settings: t2i show multirun/mine",
        "to train it for longer: t2i train from=mine steps=80 run=mine-2",
    ]
    worse = ended(run, {"state": "finished"}, [*LINES, {"step": 40, "val/loss": 0.06}], 40)
    assert "it was lowest at step 10 (0.04000)" in worse[1]
    hardly = ended(run, {"state": "finished"}, [*LINES, {"step": 40, "val/loss": 0.04999}], 40)
    assert hardly[0].endswith("val/loss 0.04999 (+0.0% since step 0)")
    (tmp_path / "multirun" / "sweep.json").touch()
    assert ended(run, {"state": "finished"}, LINES, 40) == told[:1]


def test_a_paused_run_goes_on_without_the_step_that_paused_it(tmp_path):
    (step,) = next_steps(tmp_path, "paused", {"overrides": ["steps=40", "stop_at=20", "run=x"]})
    assert step.command == f"t2i train steps=40 run={tmp_path}"
