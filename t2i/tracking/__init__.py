"""Trackers, which get a copy of the run folder's curves and images. They are called on the main process only.

The run folder has everything and is written first. The recorder sends again what a tracker lost in a crash, and so a
run may also be continued with another tracker.
"""

from typing import Protocol

from PIL import Image

from t2i.tracking.run_info import RunInfo
from t2i.tracking.tensorboard import TensorBoard
from t2i.tracking.trackio import Trackio
from t2i.tracking.wandb import Wandb

__all__ = ["NoTracker", "RunInfo", "TensorBoard", "Tracker", "Trackio", "Wandb"]


class Tracker(Protocol):
    upload: str  # the command that uploads later what could not be uploaded; "" if there is none

    def start(self, info: RunInfo) -> tuple[str | None, int]:
        """Begin a run, or continue the one with the id `info.run_id`.

        Returns the run's id, and the step up to which the tracker has everything; -1 if it has nothing.
        """
        ...

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None: ...
    def finish(self, succeeded: bool) -> None: ...


class NoTracker:
    """Records nothing."""

    upload = ""

    def start(self, info: RunInfo) -> tuple[None, int]:
        return None, info.last_step

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None:
        pass

    def finish(self, succeeded: bool) -> None:
        pass
