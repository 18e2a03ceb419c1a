"""Weights & Biases."""

import contextlib
import logging
import netrc
import os
import shlex
import sys
import uuid
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from PIL import Image

from t2i.config import ConfigError, check_installed
from t2i.config.secrets import redact_all
from t2i.runs.text import one_line
from t2i.tracking.offline import mark_uploaded, repair
from t2i.tracking.run_info import RunInfo

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)
MODES = ("auto", "online", "offline", "disabled")
ENVIRONMENT_MODES = ("online", "offline", "disabled", "shared")
TEXTS = ("WANDB_API_KEY", "WANDB_SWEEP_ID", "WANDB_RUN_ID")  # variables that may have any value, or are checked later


class Wandb:
    """Never asks for input, and never waits long for the network: without a key or a network it writes files to upload.

    mode: auto (online with an API key or under `wandb agent`, else offline), online, offline or disabled.
    patience: seconds to wait for the network at the start and at the end. log_model: whether the run's model becomes an
    artifact at the end. snr_bins: whether the errors of single noise levels get charts.
    """

    def __init__(
        self,
        project: str,
        mode: str,
        patience: float,
        entity: str | None = None,
        name: str | None = None,
        tags: str | None = None,
        log_model: bool = False,
        snr_bins: bool = False,
    ):
        check_installed("wandb", "tracker=wandb", "wandb")
        if mode not in MODES:
            raise ConfigError(f"tracker.mode={mode} is not known; choose from {', '.join(MODES)}")
        if mode != "disabled":
            check_environment()
        _check_project(project)
        self.project, self.mode, self.patience, self.entity = project, mode, patience, entity
        self.name, self.tags = name, [tag.strip() for tag in (tags or "").split(",") if tag.strip()]
        self.log_model, self.snr_bins = log_model, snr_bins
        self.upload = ""

    def start(self, info: RunInfo) -> tuple[str, int]:
        files = info.folder / "wandb"
        if _under_agent():  # the sweep has named the run, and wandb.init takes no other id
            info = replace(info, run_id=os.environ["WANDB_RUN_ID"], name="")
        recorded = repair(files, info.run_id, info.last_step) if info.run_id else -1
        self.run = self._init(info)
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        if not self.snr_bins:  # two thirds of all charts, which would come before val/loss
            for prefix in ("train/", "val/", "val/ema/"):
                self.run.define_metric(f"{prefix}snr_bin_*", step_metric="step", hidden=True)
        if self.run.offline:
            log.info("W&B is offline; to upload: %s", self._upload_command(files))
        elif not self.run.disabled:
            log.info("W&B: %s", self.run.url)
            recorded = self.run.starting_step - 1  # what the server has; the client would drop steps up to it
            mark_uploaded(files, self.run.id)  # the recorder sends what the server lacks
        self.upload = self._upload_command(files)
        if info.group and info.folder.parent.name == Path(info.group).name and not self.run.disabled:
            _link_in_sweep(info.folder, Path(self.run.dir).parent)
        self.logs = LogTab(self.run, info.folder / "train.log" if info.run_id is None else None)
        logging.getLogger().addHandler(self.logs)
        self.model = info.folder / "model"
        return self.run.id, recorded

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log({"step": step, **metrics}, step=step)

    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None:
        import wandb

        media = [wandb.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
        self.run.log({"step": step, key: media}, step=step)

    def finish(self, succeeded: bool) -> None:
        logging.getLogger().removeHandler(self.logs)
        if self.log_model and self.model.is_dir() and not self.run.disabled:
            import wandb

            artifact = wandb.Artifact(f"model-{self.run.id}", type="model")
            artifact.add_dir(str(self.model))
            self.run.log_artifact(artifact)
        self.run.finish(exit_code=0 if succeeded else 1)

    def _init(self, info: RunInfo) -> "wandb.Run":
        """Begin or resume the run; offline if W&B can't be reached."""
        import wandb

        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's own telemetry can delay the end by 10 seconds
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=self.patience,
            finish_timeout=self.patience,
            finish_timeout_raises=True,
        )
        arguments: dict[str, Any] = {
            "project": self.project,
            "entity": self.entity,
            "dir": str(info.folder),
            "name": (self.name if self.name and not info.group else info.name) or None,
            "group": info.group,
            "tags": list(dict.fromkeys([*info.tags, *self.tags])),
            "config": info.config,
            "id": info.run_id or uuid.uuid4().hex[:8],
            "resume": "allow" if info.run_id else None,
            "mode": self._current_mode(),
            "settings": settings,
        }
        with _redacted_command_line():
            try:
                return wandb.init(**arguments)
            except wandb.errors.Error as error:  # no key, a wrong one, no network
                log.warning("W&B can't be reached (%s); the run continues offline", str(error).splitlines()[0])
                wandb.teardown()  # or the id would still count as in use
                return wandb.init(**arguments | {"mode": "offline"})

    def _current_mode(self) -> str:
        if self.mode != "auto":
            return self.mode
        return os.environ.get("WANDB_MODE") or ("online" if has_key() or _under_agent() else "offline")

    def _upload_command(self, files: Path) -> str:
        return shlex.join(["wandb", "sync", *([] if self.run.offline else ["--include-online"]), str(files)])


class LogTab(logging.Handler):
    """Writes the log, which holds no secrets, into the run's tab Logs."""

    def __init__(self, run: "wandb.Run", before: Path | None):
        """before: the log up to now, of a run that begins."""
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        self.run = run
        if before is not None and before.is_file():
            run.write_logs(before.read_text(encoding="utf-8", errors="replace"))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # train.log has the line, and no tracker ends a run
            self.run.write_logs(self.format(record))


def _check_project(project: str) -> None:
    """Refuse a name that W&B refuses when the run starts."""
    team, slash, name = project.partition("/")
    if slash and "/" not in name:
        raise ConfigError(
            f"tracker.project={project}: a project's name has no slash; for the project of a team, use "
            f"tracker.entity={team} tracker.project={name}"
        )
    if unfit := sorted({character for character in project if character in "/\\#?%:"}):
        raise ConfigError(f"tracker.project={project}: a project's name has no {' '.join(unfit)}; use another name")


def check_environment() -> None:
    """Refuse a variable WANDB_... with a value that W&B does not take; when a run starts, it would say so at length."""
    given = {name: value for name, value in os.environ.items() if name.startswith("WANDB_") and name not in TEXTS}
    if given.get("WANDB_MODE") in ENVIRONMENT_MODES:
        del given["WANDB_MODE"]
    if not given:  # W&B is slow to import
        return
    import wandb

    for name, value in given.items():
        try:
            wandb.Settings().update_from_env_vars({name: value})
        except (ValueError, TypeError, wandb.errors.Error) as error:
            details = getattr(error, "errors", list)()  # of pydantic
            reason = details[0]["msg"] if details else one_line(error)
            raise ConfigError(
                f"the environment variable {name} has a value that W&B does not take ({reason}); correct or unset it"
            ) from error


@contextlib.contextmanager
def _redacted_command_line() -> Generator[None]:
    """Within, sys.argv holds no secrets: W&B uploads it as the command of the run, and has no setting for it."""
    typed = sys.argv
    sys.argv = redact_all(typed)
    try:
        yield
    finally:
        sys.argv = typed


def has_key() -> bool:
    """Whether there is an API key, as from `wandb login`. W&B's own check would ask its server."""
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


def _link_in_sweep(folder: Path, files: Path) -> None:
    """Link the run's files in the sweep's wandb/, where `wandb leet` and `wandb sync` find all runs of the sweep.

    The link has the name of the files' folder, as `wandb leet` opens no other.
    """
    links = folder.parent / "wandb"
    if links.is_symlink():  # the sweep's folder may be a stranger's, and the link lead anywhere
        return
    with contextlib.suppress(OSError):  # some file systems have no links; only the overview is lost
        links.mkdir(exist_ok=True)
        (links / files.name).symlink_to(os.path.relpath(files, links))
        for link in links.iterdir():
            if not link.exists():  # `repair` has removed the files
                link.unlink()
