"""A job of a sweep: its command line, and what its folder says of it."""

import json
import math
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from t2i.config.compose import CONF
from t2i.runs.files import in_use
from t2i.runs.folder import Run

OWN = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper", "hydra.sweep.", "hydra.run.", "hydra.mode")


class JobsFailed(CompactHydraException):
    """Printed without a traceback."""

    exit_code = 1  # of `t2i train -m`: the command line was right


class Outcome(JobReturn):
    """What a sweeper gets to know of a job."""

    @property
    def return_value(self) -> float:
        if self.status == JobStatus.COMPLETED:
            return self._return_value
        raise self._return_value


@dataclass
class Job:
    """One job, as its folder shows it."""

    folder: Path
    arguments: list[str]
    steps: int
    validate_every: int
    seed: int
    state: str = "waiting"  # running, paused, stopped, finished, failed, interrupted
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)  # the latest of each
    process: BaseProcess | None = None
    device: str | None = None
    began: float = 0.0
    first: tuple[float, float] | None = None  # when, and at which step, this process was first seen to log
    position: int = 0  # in metrics.jsonl

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def unfinished(self) -> bool:
        return self.state in ("waiting", "paused")

    def info(self) -> dict[str, Any]:
        file = self.folder / "run.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def look(self) -> None:
        """Read what has been logged since the last look."""
        file = self.folder / "metrics.jsonl"
        if not file.is_file():
            return
        if file.stat().st_size < self.position:  # rewound
            self.position = 0
        with file.open("rb") as stream:
            stream.seek(self.position)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self.position += len(line)
                with suppress(json.JSONDecodeError):
                    self.metrics |= json.loads(line)
        if self.state == "running" and self.first is None and "step" in self.metrics:
            self.first = time.monotonic(), self.metrics["step"]

    def seconds_left(self) -> float:
        """At the rate of this process; not a number before it is known."""
        done = self.metrics.get("step", 0)
        if self.state != "running" or self.first is None or done <= self.first[1]:
            return math.nan
        return (time.monotonic() - self.first[0]) / (done - self.first[1]) * (self.steps - done)

    def rung_step(self, rung: float) -> int:
        """The first validation at or after this share of the steps."""
        every = self.validate_every or self.steps
        return min(math.ceil(self.steps * rung / every) * every, self.steps)

    def in_use(self) -> bool:
        """Whether a process works in the folder."""
        return in_use(self.folder)

    def interrupt(self) -> None:
        """Send SIGINT to the job's processes."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGINT)

    def make_plan(self) -> None:
        """Note how the process ended, in run.json too where the process itself could not."""
        self.look()
        file = self.folder / "run.json"
        spoke = file.is_file() and file.stat().st_mtime >= self.began  # else what it says is of an earlier process
        info = self.info() if spoke else {}
        if info.get("state", "running") == "running":
            info = {"state": "failed", "error": _death(self.process.exitcode, self.folder / "console.log")}
            Run.mark(self.folder, **info)
        self.state, self.reason = info["state"], info.get("error", "")

    def outcome(self, error: JobsFailed) -> Outcome:
        """What the sweeper gets: val/loss, or else the error."""
        done = self.state in ("finished", "stopped")
        value = self.metrics.get("val/loss", math.nan) if done else error
        status = JobStatus.COMPLETED if done else JobStatus.FAILED
        return Outcome(overrides=self.arguments, working_dir=str(self.folder), status=status, _return_value=value)


def command_line(config: DictConfig, folder: Path) -> list[str]:
    """The command line of a job."""
    flags = ["--config-name", config.hydra.job.config_name]
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", source.path]
        elif source.provider == "main" and Path(source.path) != CONF:
            flags += ["--config-path", source.path]
    hydra = [override for override in config.hydra.overrides.hydra if not override.lstrip("+~").startswith(OWN)]
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*flags, *config.hydra.overrides.task, *hydra, f"hydra.run.dir='{quoted}'", "hydra.mode=RUN"]


def _death(code: int, console: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    lines = console.read_text(errors="replace").split("\n") if console.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"exit code {code}: {last.removeprefix('t2i: ')}"
