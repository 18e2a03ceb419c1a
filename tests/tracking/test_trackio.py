"""Trackio, read back through its own interface, and seen on its dashboard."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from helpers.trackers import run_info
from PIL import Image

from t2i.tracking import Trackio
from t2i.tracking.trackio import delete_later_steps

pytestmark = pytest.mark.skipif(find_spec("trackio") is None, reason="needs the package trackio")


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    """Trackio reads TRACKIO_DIR only once, when it is imported."""
    folder = tmp_path_factory.mktemp("trackio")
    os.environ["TRACKIO_DIR"] = str(folder)
    yield folder
    del os.environ["TRACKIO_DIR"]


def names(project: str) -> list[str]:
    import trackio

    return sorted(run.name for run in trackio.Api().runs(project))


def rows(store, project: str, run_id: str) -> list[tuple[int, dict]]:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = {run["name"] for run in SQLiteStorage.get_run_records(project) if run["id"] == run_id}
    return SQLiteStorage.get_logs(project, name, run_id=run_id)


def test_config_group_curves_and_images_are_there(store, tmp_path, capsys):
    import trackio

    tracker = Trackio("there")
    config = {"loss": {"snr_gamma": 5.0}, "optimizer": {"lr": 1e-4}}
    run_id, recorded = tracker.start(run_info(tmp_path, "snr_gamma-5", config=config, group="gamma"))
    tracker.images(10, "samples", [Image.new("RGB", (8, 8), color) for color in ("red", "blue")], ["red apple", "sea"])
    tracker.log(10, {"train/loss": 0.5})
    tracker.finish(succeeded=True)
    assert recorded == -1
    (run,) = trackio.Api().runs("there")
    assert (run.id, run.name, run.config["_Group"]) == (run_id, "snr_gamma-5", "gamma")
    assert (run.config["loss.snr_gamma"], run.config["optimizer.lr"]) == (5.0, 1e-4)
    images, metrics = rows(store, "there", run_id)
    assert (metrics["step"], metrics["train/loss"]) == (10, 0.5)
    assert [images[f"samples/{i}"]["caption"] for i in range(2)] == ["red apple", "sea"]
    assert (store / "media" / images["samples/1"]["file_path"]).is_file()
    assert capsys.readouterr().out == ""


def test_two_runs_of_one_name_stay_two(tmp_path):
    ids = []
    for _ in range(2):
        tracker = Trackio("two")
        ids.append(tracker.start(run_info(tmp_path, "mine"))[0])
        for step in range(2):
            tracker.log(step, {"train/loss": 1.0})
        tracker.finish(succeeded=True)
    assert names("two") == ["mine", "mine-2"]
    tracker = Trackio("two")
    assert tracker.start(run_info(tmp_path, "mine", run_id=ids[0], last_step=1))[0] == ids[0]
    tracker.finish(succeeded=True)
    assert names("two") == ["mine", "mine-2"]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from t2i.tracking import RunInfo, Trackio

tracker = Trackio("killed")
info = RunInfo(folder=Path("."), name="mine", group=None, tags=[], config={}, run_id=None, last_step=-1)
print(tracker.start(info)[0], flush=True)
for step in range(40):
    tracker.log(step, {"train/loss": 1.0})
    time.sleep(0.03)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_with_every_step_once(store, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert killed.returncode == -signal.SIGKILL
    run_id = killed.stdout.split()[-1]
    for last_step, end in ((50, 55), (20, 30)):
        tracker = Trackio("killed")
        same_id, recorded = tracker.start(run_info(tmp_path, "mine", run_id=run_id, last_step=last_step))
        assert same_id == run_id
        assert 0 < recorded <= last_step
        for step in range(recorded + 1, end):
            tracker.log(step, {"train/loss": 2.0})
        tracker.finish(succeeded=True)
        assert [row["step"] for row in rows(store, "killed", run_id)] == list(range(end))
    assert names("killed") == ["mine"]


def test_later_rows_of_the_run_are_deleted_and_no_others(store, tmp_path):
    """This is SQL on Trackio's tables: a version that changes them must not be allowed in pyproject.toml."""
    ids = []
    for name in ("one", "two"):
        tracker = Trackio("deleted")
        ids.append(tracker.start(run_info(tmp_path, name))[0])
        for step in range(6):
            tracker.log(step, {"train/loss": 1.0})
        tracker.finish(succeeded=True)
    assert delete_later_steps("deleted", ids[0], 3) == 3
    steps = [[row["step"] for row in rows(store, "deleted", run_id)] for run_id in ids]
    assert steps == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert delete_later_steps("deleted", ids[1], 100) == 4  # the newest may be incomplete
    assert delete_later_steps("deleted", "unknown", 3) == -1
    assert delete_later_steps("no such project", ids[0], 3) == -1


def test_a_step_that_may_be_incomplete_is_sent_again(store, tmp_path):
    """Here a crash came between the images and the metrics of a step."""
    tracker = Trackio("lacks")
    run_id, _ = tracker.start(run_info(tmp_path, "mine"))
    tracker.log(1, {"train/loss": 1.0})
    tracker.images(2, "samples", [Image.new("RGB", (8, 8))], ["red apple"])
    tracker.finish(succeeded=False)
    tracker = Trackio("lacks")
    assert tracker.start(run_info(tmp_path, "mine", run_id=run_id, last_step=2)) == (run_id, 1)
    tracker.finish(succeeded=True)
    assert [row["step"] for row in rows(store, "lacks", run_id)] == [1]


def test_an_unknown_id_begins_a_run_that_has_nothing(tmp_path):
    """An id of another tracker, or of a run that was killed before its first row."""
    tracker = Trackio("unknown")
    run_id, recorded = tracker.start(run_info(tmp_path, "mine", run_id="abcd1234", last_step=100))
    tracker.log(0, {"train/loss": 1.0})
    tracker.finish(succeeded=True)
    assert recorded == -1
    assert run_id != "abcd1234"
    assert names("unknown") == ["mine"]


@pytest.mark.browser
def test_the_dashboard_shows_the_runs_of_a_sweep_together(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    import trackio

    for name, loss in (("snr_gamma-1", 1.0), ("snr_gamma-5", 2.0)):
        tracker = Trackio("seen")
        tracker.start(run_info(tmp_path, name, config={"loss": {"snr_gamma": loss}}, group="gamma"))
        for step in range(20):
            tracker.log(step, {"train/loss": loss / (step + 1)})
        tracker.images(20, "samples", [Image.new("RGB", (64, 64), "red")], ["red apple"])
        tracker.finish(succeeded=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its write token
        app, address, *_ = trackio.show("seen", open_browser=False, block_thread=False, host="127.0.0.1")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=quiet)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}?project=seen")
        for name in ("snr_gamma-1", "snr_gamma-5", "loss"):
            sync_api.expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=20_000)
        page.get_by_placeholder("Select...").click()  # what to group by
        sync_api.expect(page.get_by_role("option", name="loss.snr_gamma")).to_be_visible()
        page.screenshot(path=tmp_path / "dashboard.png")
        browser.close()
    app.close()
