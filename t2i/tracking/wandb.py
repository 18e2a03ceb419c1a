"""Weights & Biases."""

import contextlib
import logging
import netrc
import os
import shlex
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from t2i.config import ConfigError, check_installed
from t2i.tracking.offline import mark_uploaded, repair

log = logging.getLogger(__name__)
MODES = ("auto", "online", "offline", "disabled")


class Wandb:
    """It never asks, and a lost network does not hold it up: without a key, or a network, it writes to the run folder.

    mode: auto (online with an API key or under `wandb agent`, else offline), online, offline or disabled.
    patience: seconds that the start, and the end, wait for the network.
    """

    def __init__(self, project: str, mode: str, patience: float, entity: str | None = None):
        check_installed("wandb", "tracker=wandb", "wandb")
        if mode not in MODES:
            raise ConfigError(f"tracker.mode={mode} is not known; choose from {', '.join(MODES)}")
        self.project, self.mode, self.patience, self.entity = project, mode, patience, entity
        self.upload = ""

    def start(
        self,
        folder: Path,
        name: str,
        group: str | None,
        tags: list[str],
        config: dict,
        run_id: str | None,
        last_step: int,
    ) -> tuple[str, int]:
        import wandb

        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # or its own telemetry holds up the end for 10 seconds
        if _under_agent():  # the sweep has named the run, and wandb.init takes no other id
            run_id, name = os.environ["WANDB_RUN_ID"], None
        recorded = repair(folder / "wandb", run_id, last_step) if run_id else -1
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
            "settings": wandb.Settings(
                console="off",
                silent=True,
                init_timeout=self.patience,
                finish_timeout=self.patience,
                finish_timeout_raises=True,
            ),
        }
        try:
            self.run = wandb.init(mode=self._mode(), **arguments)
        except wandb.errors.Error as error:  # no key, a wrong one, no network
            log.warning("W&B can't be reached (%s); the run goes on offline", str(error).splitlines()[0])
            wandb.teardown()  # or the same id would still count as in use
            self.run = wandb.init(mode="offline", **arguments)
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        if self.run.offline:
            log.info("W&B is offline; to upload: %s", self._upload(folder))
        elif not self.run.disabled:
            log.info("W&B: %s", self.run.url)
            recorded = self.run.starting_step - 1  # what the server has; logged again, the client would drop it
            mark_uploaded(folder / "wandb", self.run.id)  # the recorder tells again what the server lacks
        self.upload = self._upload(folder)
        if group and folder.parent.name == Path(group).name and not self.run.disabled:
            _show_in_sweep(folder, Path(self.run.dir).parent)
        return self.run.id, recorded

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log({"step": step, **metrics}, step=step)

    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None:
        import wandb

        media = [wandb.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
        self.run.log({"step": step, key: media}, step=step)

    def finish(self, succeeded: bool) -> None:
        self.run.finish(exit_code=0 if succeeded else 1)

    def _mode(self) -> str:
        if self.mode != "auto":
            return self.mode
        return os.environ.get("WANDB_MODE") or ("online" if has_key() or _under_agent() else "offline")

    def _upload(self, folder: Path) -> str:
        return shlex.join(["wandb", "sync", *([] if self.run.offline else ["--include-online"]), str(folder / "wandb")])


def has_key() -> bool:
    """Whether `wandb login` has been here; asking wandb itself would ask its server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
    except (OSError, netrc.NetrcParseError):
        return False
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    return server in hosts or any(host.endswith((".wandb.ai", ".coreweave.com")) for host in hosts)


def _under_agent() -> bool:
    return "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ


def _show_in_sweep(folder: Path, files: Path) -> None:
    """Link the files in the sweep's wandb/, where `wandb leet` and `wandb sync` find all the runs of the sweep.

    The name stays, for `wandb leet` opens no other.
    """
    links = folder.parent / "wandb"
    with contextlib.suppress(OSError):  # a file system without links; the run lacks nothing
        links.mkdir(exist_ok=True)
        (links / files.name).symlink_to(os.path.relpath(files, links))
        for link in links.iterdir():
            if not link.exists():  # it led to files that were removed, see repair
                link.unlink()
