"""The one place where a tracker's failures are caught."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from PIL import Image

from t2i.config.secrets import redact_all
from t2i.tracking import RunInfo, Tracker

log = logging.getLogger(__name__)


class Guarded:
    """A tracker that gets no step twice and can't end the run: its first error is a warning, and it gets no more."""

    def __init__(self, tracker: Tracker):
        self.tracker, self.recorded, self.failed = tracker, -1, False

    def start(self, info: RunInfo) -> str | None:
        """Start the tracker; returns the run's id. Errors propagate, as nothing has been computed yet."""
        blanked = {name: redact_all(getattr(info, name)) for name in ("name", "group", "tags", "config")}
        run_id, self.recorded = self.tracker.start(replace(info, **blanked))
        return run_id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.wants(step):
            self._try(self.tracker.log, step, metrics)

    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None:
        if self.wants(step):
            self._try(self.tracker.images, step, key, images, redact_all(captions))

    def finish(self, succeeded: bool) -> None:
        self._try(self.tracker.finish, succeeded)

    def wants(self, step: int) -> bool:
        """Whether the tracker works and does not have this step yet."""
        return step > self.recorded and not self.failed

    def _try(self, call: Callable, *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            if not self.failed:
                later = f"; to upload what it got: {self.tracker.upload}" if self.tracker.upload else ""
                problem = f"{type(error).__name__}: {error}"
                known = f"the run continues without it, and its folder has everything{later}"
                log.warning("the tracker failed (%s); %s", problem, known)
            self.failed = True
