"""The one place where a tracker's failures are caught."""

import logging
from collections.abc import Callable
from typing import Any

from PIL import Image

from t2i.tracking import Tracker

log = logging.getLogger(__name__)


class Guarded:
    """A tracker that is told no step twice, and that can't end the run: what it raises is a warning, once."""

    def __init__(self, tracker: Tracker):
        self.tracker, self.recorded, self.failed = tracker, -1, False

    def start(self, *arguments: Any) -> str | None:
        """As the tracker's; what it raises is raised, for that is seen in time."""
        tracker_id, self.recorded = self.tracker.start(*arguments)
        return tracker_id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.wants(step):
            self._try(self.tracker.log, step, metrics)

    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None:
        if self.wants(step):
            self._try(self.tracker.images, step, key, images, captions)

    def finish(self, succeeded: bool) -> None:
        self._try(self.tracker.finish, succeeded)

    def wants(self, step: int) -> bool:
        """Whether the tracker lacks this step, and still works."""
        return step > self.recorded and not self.failed

    def _try(self, call: Callable, *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            if not self.failed:
                later = f"; to upload what it got: {self.tracker.upload}" if self.tracker.upload else ""
                log.warning(
                    "the tracker failed (%s: %s); the run goes on without it, and its folder has everything%s",
                    type(error).__name__, error, later,
                )  # fmt: skip
            self.failed = True
