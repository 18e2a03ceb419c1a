"""Where curves and images go besides the run folder. A tracker is called on the main process only.

The run folder comes first and has everything; a tracker holds a copy to look at. What it lost of that copy in a crash
the recorder tells it again, so a run may also be continued with another tracker.
"""

from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from t2i.tracking.tensorboard import TensorBoard
from t2i.tracking.trackio import Trackio
from t2i.tracking.wandb import Wandb

__all__ = ["NoTracker", "TensorBoard", "Tracker", "Trackio", "Wandb"]


class Tracker(Protocol):
    upload: str  # the command that uploads later what could not be uploaded; empty where nothing is

    def start(
        self,
        folder: Path,
        name: str,
        group: str | None,
        tags: list[str],
        config: dict,
        run_id: str | None,
        last_step: int,
    ) -> tuple[str | None, int]:
        """Begin a run, or continue the one of that id; steps after `last_step` (-1: all) are about to be logged again.

        Returns the id, and the step up to which everything is there already, -1 for nothing.
        """
        ...

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None: ...
    def finish(self, succeeded: bool) -> None: ...


class NoTracker:
    """The run folder is enough."""

    upload = ""

    def start(self, *arguments: Any) -> tuple[None, int]:
        return None, arguments[-1]

    def log(self, *_: Any) -> None:
        pass

    def images(self, *_: Any) -> None:
        pass

    def finish(self, *_: Any) -> None:
        pass
