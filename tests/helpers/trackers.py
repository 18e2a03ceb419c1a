"""Trackers that record what they get, or fail."""

from pathlib import Path
from typing import Any

from t2i.tracking import NoTracker, RunInfo


def run_info(folder: Path, name: str = "name", config: dict | None = None, **more: Any) -> RunInfo:
    """A new run without a group and tags, unless `more` has other values."""
    new = {"group": None, "tags": [], "run_id": None, "last_step": -1}
    return RunInfo(folder=folder, name=name, config=config or {}, **new | more)


class Recorder(NoTracker):
    """Keeps what it gets, after it has claimed to have every step up to `has`."""

    def __init__(self, has=-1):
        self.has, self.received = has, []

    def start(self, info):
        return "abcd1234", self.has

    def log(self, step, metrics):
        self.received.append(step)

    def images(self, step, key, images, captions):
        self.received.append((step, key, captions))


class Broken(Recorder):
    upload = "wandb sync multirun/mine/wandb"

    def log(self, *_):
        raise OSError("no space left on device")

    images = finish = log
