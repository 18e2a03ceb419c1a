"""Where curves and pictures go besides the run folder. A tracker is called on the main process only."""

import logging
import netrc
import os
import uuid
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from PIL import Image

from t2i.config import ConfigError

log = logging.getLogger(__name__)


class Tracker(Protocol):
    def start(
        self, folder: Path, name: str, group: str | None, tags: list[str], config: dict, run_id: str | None
    ) -> str | None:
        """Begin, or continue the run of that id; returns the id."""
        ...

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None: ...
    def finish(self, succeeded: bool) -> None: ...


class NoTracker:
    """The run folder is enough."""

    def start(self, *_: Any) -> None:
        return None

    def log(self, *_: Any) -> None:
        pass

    def images(self, *_: Any) -> None:
        pass

    def finish(self, *_: Any) -> None:
        pass


class Wandb:
    """Weights & Biases. It never asks, and never blocks: without a key, or a network, it writes to the run folder.

    mode: auto (online with an API key, else offline), online, offline or disabled.
    """

    def __init__(self, project: str, mode: str, entity: str | None = None):
        modes = ("auto", "online", "offline", "disabled")
        if mode not in modes:
            raise ConfigError(f"tracker.mode={mode} is not known; choose from {', '.join(modes)}")
        self.project, self.mode, self.entity = project, mode, entity

    def start(
        self, folder: Path, name: str, group: str | None, tags: list[str], config: dict, run_id: str | None
    ) -> str:
        import wandb

        mode = self.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        arguments = {
            "project": self.project,
            "entity": self.entity,
            "dir": str(folder),
            "name": name,
            "group": group,
            "tags": tags,
            "config": config,
            "id": run_id or uuid.uuid4().hex[:8],
            "resume": "allow" if run_id else None,
            "settings": wandb.Settings(console="off", silent=True, init_timeout=20),
        }
        try:
            self.run = wandb.init(mode=mode, **arguments)
        except wandb.errors.Error as error:  # no key, a wrong one, no network
            log.warning("W&B can't be reached (%s); the run goes on offline", str(error).splitlines()[0])
            wandb.teardown()  # or the same id would still count as in use
            if "in use" in str(error):
                arguments["id"] = uuid.uuid4().hex[:8]
            self.run = wandb.init(mode="offline", **arguments)
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        if self.run.offline:
            log.info("W&B is offline; to upload: wandb sync %s", Path(self.run.dir).parent)
        return self.run.id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log({"step": step, **metrics}, step=step)

    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None:
        import wandb

        pictures = [wandb.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
        self.run.log({"step": step, key: pictures}, step=step)

    def finish(self, succeeded: bool) -> None:
        self.run.finish(exit_code=0 if succeeded else 1)


def _has_key() -> bool:
    """Whether `wandb login` has been here; asking wandb itself would ask its server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
    except (OSError, netrc.NetrcParseError):
        return False
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    return server in hosts or any(host.endswith((".wandb.ai", ".coreweave.com")) for host in hosts)
