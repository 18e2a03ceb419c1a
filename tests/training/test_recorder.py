"""The run folder is written whatever the tracker does, and the tracker is told again what it lost."""

import json

import pytest
from helpers.trackers import Broken, Recorder
from omegaconf import OmegaConf
from PIL import Image

from t2i.runs.folder import Run
from t2i.tracking import NoTracker
from t2i.training.recorder import recording

PROMPTS = ["red apple", "sea"]


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path / "mine", OmegaConf.create({"samples": {"prompts": PROMPTS}}))
    run.begin()
    return run


def record(run, tracker, steps, last_step=-1):
    """A run over `steps` with a row at each, and images at every fifth."""
    with recording(run, tracker, None, ["run=mine", "seed=1", "loss=" + "x" * 64], len(steps), last_step) as records:
        for step in steps:
            if step % 5 == 0:
                records.images(step, PROMPTS, [Image.new("RGB", (8, 8), (step, place, 0)) for place in range(2)])
            records.log(step, {"train/loss": 1.0})


def recorded(run) -> tuple[list[int], list[str]]:
    """Steps in metrics.jsonl, and the strips of images."""
    strips = sorted(file.name for file in (run.folder / "samples").glob("step-*.png"))
    return [line["step"] for line in run.metrics()], strips


def test_a_broken_tracker_leaves_a_whole_run_folder(run, caplog):
    record(run, Broken(), range(11))
    assert recorded(run) == (list(range(11)), ["step-000000.png", "step-000005.png", "step-000010.png"])
    assert len(caplog.messages) == 1


def test_a_resumed_run_tells_the_tracker_what_it_lost_and_drops_what_comes_again(run):
    record(run, NoTracker(), range(13))
    tracker = Recorder(has=3)
    record(run, tracker, range(8, 10), last_step=7)
    assert tracker.received == [4, (5, "samples", PROMPTS), 5, 6, 7, 8, 9]
    assert recorded(run) == (list(range(10)), ["step-000000.png", "step-000005.png"])


def test_a_tracker_that_the_run_did_not_begin_with_gets_everything(run):
    record(run, NoTracker(), range(8))
    tracker = Recorder()
    record(run, tracker, range(0), last_step=7)
    assert tracker.received == [(0, "samples", PROMPTS), 0, 1, 2, 3, 4, (5, "samples", PROMPTS), 5, 6, 7]


def test_images_are_told_again_pixel_by_pixel(run):
    class Pixels(Recorder):
        def images(self, step, key, images, captions):
            self.received.append([image.getpixel((7, 7)) for image in images])

        def log(self, *_):
            pass

    first, second = Pixels(), Pixels()
    record(run, first, range(6))
    record(run, second, range(0), last_step=5)
    assert first.received == second.received == [[(0, 0, 0), (0, 1, 0)], [(5, 0, 0), (5, 1, 0)]]


def test_the_id_stays_in_the_run_folder_and_tags_are_what_tells_runs_apart(run):
    class Start(Recorder):
        def start(self, info):
            self.received.append((info.name, info.group, info.tags, info.run_id, info.last_step))
            return "abcd1234", -1

    tracker = Start()
    record(run, tracker, range(0))
    assert json.loads((run.folder / "run.json").read_text())["tracker_id"] == "abcd1234"
    record(run, NoTracker(), range(0))
    record(run, tracker, range(0), last_step=3)
    name = f"{run.folder.parent.name}-mine"
    assert tracker.received == [(name, None, ["seed=1"], None, -1), (name, None, ["seed=1"], "abcd1234", 3)]


def test_the_tracker_learns_what_auto_has_come_to_and_what_the_run_works_on(run):
    class Start(Recorder):
        def start(self, info):
            self.received.append(info.config)
            return "abcd1234", -1

    facts = {"precision": "bf16", "gpu": "one", "pictures": {"train": 9, "validation": 3}, "battery": {"items": 3}}
    run.update(**facts, process="not for a tracker")
    tracker = Start()
    record(run, tracker, range(0))
    (config,) = tracker.received
    assert config["resolved"] == facts
    assert config["samples"] == {"prompts": PROMPTS}


def test_the_tracker_knows_that_a_run_has_failed(run):
    class End(NoTracker):
        def finish(self, succeeded):
            self.succeeded = succeeded

    tracker = End()
    with pytest.raises(FloatingPointError), recording(run, tracker, None, [], 10, -1):
        raise FloatingPointError
    assert tracker.succeeded is False
