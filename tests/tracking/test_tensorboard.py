"""TensorBoard, read back through its own EventAccumulator."""

from importlib.util import find_spec

import pytest
from helpers.trackers import run_info
from PIL import Image

from t2i.tracking import TensorBoard

pytestmark = pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the package tensorboard")


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_curves_images_and_settings_are_there(tmp_path, caplog):
    caplog.set_level("INFO")
    tracker = TensorBoard()
    config = {"loss": {"snr_gamma": 5.0}, "optimizer": {"lr": 1e-4}, "seed": 0, "sweep": None, "list": [1]}
    assert tracker.start(run_info(tmp_path, "snr_gamma-5", config=config, group="gamma")) == (None, -1)
    tracker.images(10, "samples", [Image.new("RGB", (8, 8), color) for color in ("red", "blue")], ["red apple", "sea"])
    tracker.log(10, {"train/loss": 0.5})
    tracker.finish(succeeded=True)
    events = read(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(10, 0.5)]
    assert events.Tags()["images"] == ["samples/0_red_apple", "samples/1_sea"]
    (text,) = events.Tensors("config/text_summary")
    assert b"snr_gamma: 5.0" in text.tensor_proto.string_val[0]
    assert b"loss.snr_gamma" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1  # one run
    assert f"tensorboard --logdir {tmp_path.parent}" in caplog.text


def test_an_aborted_run_continues_with_every_step_once(tmp_path):
    tracker = TensorBoard()
    tracker.start(run_info(tmp_path, "mine"))
    for step in range(40):
        tracker.log(step, {"train/loss": 1.0})  # without finish()
    for resumed, (last_step, end) in enumerate(((50, 55), (20, 30))):
        newest = max((tmp_path / "tensorboard").iterdir())
        newest.rename(newest.with_name(f"events.out.tfevents.{resumed:010d}"))  # they are sorted by these seconds
        tracker = TensorBoard()
        _, recorded = tracker.start(run_info(tmp_path, "mine", last_step=last_step))
        assert recorded == min(last_step, 38)  # the last step, 39, may be incomplete
        for step in range(recorded + 1, end):
            tracker.log(step, {"train/loss": 2.0})
        tracker.finish(succeeded=True)
        assert [event.step for event in read(tmp_path).Scalars("train/loss")] == list(range(end))
    values = [event.value for event in read(tmp_path).Scalars("train/loss")]
    assert values == [1.0] * 21 + [2.0] * 9
