"""What holds for every tracker: it can't end the run, and is refused at the start if its package is missing."""

import importlib.util
import subprocess
import sys

import pytest
from helpers.runs import compose
from helpers.trackers import Broken, Recorder, run_info

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.tracking import NoTracker
from t2i.tracking.guarded import Guarded


@pytest.mark.parametrize("method", ["log", "images", "finish"])
def test_errors_of_a_tracker_are_one_warning_that_names_the_remedy(method, caplog, tmp_path):
    tracker = Guarded(Broken())
    tracker.start(run_info(tmp_path))
    for _ in range(2):
        if method == "images":
            tracker.images(0, "samples", [], [])
        elif method == "log":
            tracker.log(0, {})
    tracker.finish(succeeded=True)
    (warning,) = caplog.messages
    assert "the tracker failed (OSError: no space left on device); the run continues without it" in warning
    assert warning.endswith("to upload what it got: wandb sync multirun/mine/wandb")


def test_an_error_at_the_start_propagates(tmp_path):
    class Misconfigured(NoTracker):
        def start(self, info):
            raise ValueError("no such project")

    with pytest.raises(ValueError, match="no such project"):
        Guarded(Misconfigured()).start(run_info(tmp_path))


def test_a_step_that_the_tracker_has_is_not_sent_again(tmp_path):
    recorder = Recorder(has=3)
    tracker = Guarded(recorder)
    assert tracker.start(run_info(tmp_path)) == "abcd1234"
    for step in range(6):
        tracker.images(step, "samples", [], [])
        tracker.log(step, {})
    assert recorder.received == [(4, "samples", []), 4, (5, "samples", []), 5]


INSTALL = {"wandb": "wandb", "trackio": "'t2i[trackio]'", "tensorboard": "'t2i[tensorboard]'"}


@pytest.mark.parametrize("option", INSTALL)
def test_a_missing_package_is_named_with_the_command_that_installs_it(option, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        build(compose(f"tracker={option}"), "tracker")
    assert str(error.value).startswith(f"tracker={option} needs the package {option}; ")
    assert str(error.value).endswith(f"pip install {INSTALL[option]}")


def test_choosing_a_tracker_imports_none():
    code = "import sys; import t2i.tracking; print({'wandb', 'trackio', 'tensorboard', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
