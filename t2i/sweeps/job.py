"""A job of a sweep: its command line, and its state as its folder shows it."""

import json
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from t2i.config.compose import CONF
from t2i.runs.files import in_use

# Overrides of hydra.* that concern the sweep; the others are passed on to its jobs.
OF_THE_SWEEP = (
    "hydra/launcher",
    "hydra/sweeper",
    "hydra.launcher",
    "hydra.sweeper",
    "hydra.sweep.",
    "hydra.run.",
    "hydra.mode",
)


class SweepError(CompactHydraException):
    """An error of the user's, which Hydra prints without a traceback."""

    exit_code = 1  # of `t2i train -m`: the command line was right


class JobResult(JobReturn):
    """A job's result for the sweeper. Hydra's own would print the overrides of each failed job once more."""

    @property
    def return_value(self) -> float:
        """The final val/loss; raises the job's error if it failed."""
        if self.status == JobStatus.COMPLETED:
            return self._return_value
        raise self._return_value

    @return_value.setter
    def return_value(self, value: float | SweepError) -> None:
        self._return_value = value


@dataclass
class Job:
    """A job and the latest state of its run folder."""

    folder: Path
    arguments: list[str]
    steps: int
    validate_every: int
    seed: int
    state: str = "waiting"  # running, paused, stopped, finished, failed, interrupted
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)  # the latest value of each
    first_log: tuple[float, float] | None = None  # time and step of the first log seen since the job was started
    position: int = 0  # in metrics.jsonl, up to which it has been read

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def unfinished(self) -> bool:
        return self.state in ("waiting", "paused")

    def info(self) -> dict[str, Any]:
        """The content of run.json."""
        file = self.folder / "run.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def read_metrics(self) -> None:
        """Read the lines that were added to metrics.jsonl since the last call."""
        file = self.folder / "metrics.jsonl"
        if not file.is_file():
            return
        if file.stat().st_size < self.position:  # a resumed run has dropped lines
            self.position = 0
        with file.open("rb") as stream:
            stream.seek(self.position)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self.position += len(line)
                with suppress(json.JSONDecodeError):
                    self.metrics |= json.loads(line)
        if self.state == "running" and self.first_log is None and "step" in self.metrics:
            self.first_log = time.monotonic(), self.metrics["step"]

    def seconds_left(self) -> float:
        """The time that the running job still needs at its present speed; NaN while that is unknown."""
        step = self.metrics.get("step", 0)
        if self.state != "running" or self.first_log is None or step <= self.first_log[1]:
            return math.nan
        first_time, first_step = self.first_log
        return (time.monotonic() - first_time) / (step - first_step) * (self.steps - step)

    def rung_step(self, rung: float) -> int:
        """The first validation at or after this fraction of the steps."""
        every = self.validate_every or self.steps
        return min(math.ceil(self.steps * rung / every) * every, self.steps)

    def in_use(self) -> bool:
        """Whether a process works in the folder."""
        return in_use(self.folder)

    def result(self, error: SweepError) -> JobResult:
        """The job's val/loss for the sweeper, or `error` if the job failed."""
        succeeded = self.state in ("finished", "stopped")
        result = JobResult(overrides=self.arguments, working_dir=str(self.folder))
        result.status = JobStatus.COMPLETED if succeeded else JobStatus.FAILED
        result.return_value = self.metrics.get("val/loss", math.nan) if succeeded else error
        return result


def command_line(config: DictConfig, folder: Path) -> list[str]:
    """The arguments of `python -m t2i.train` that run a job of the sweep in `folder`."""
    flags = ["--config-name", config.hydra.job.config_name]
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", source.path]
        elif source.provider == "main" and Path(source.path) != CONF:
            flags += ["--config-path", source.path]
    overrides = config.hydra.overrides
    for_the_job = [override for override in overrides.hydra if not override.lstrip("+~").startswith(OF_THE_SWEEP)]
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*flags, *overrides.task, *for_the_job, f"hydra.run.dir='{quoted}'", "hydra.mode=RUN"]
