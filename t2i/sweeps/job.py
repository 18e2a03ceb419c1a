"""A job of a sweep: its command line, and its state as its folder shows it."""

import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from t2i.config import ConfigError
from t2i.config.compose import CONF
from t2i.runs.files import in_use
from t2i.runs.folder import INFO, read_info
from t2i.runs.records import LARGEST, LONGEST, METRICS, headline, parse_metrics
from t2i.runs.text import one_line

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


@dataclass(eq=False)
class Job:
    """A job and the latest state of its run folder."""

    folder: Path
    arguments: list[str]
    steps: int
    validate_every: int
    seed: int
    begins_at: int = 0  # the step at which it goes on from another run
    state: str = "waiting"  # running, paused, stopped, finished, failed, interrupted
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)  # the latest value of each
    first_log: tuple[float, float] | None = None  # time and step of the first log seen since the job was started
    position: int = 0  # in metrics.jsonl, up to which it has been read
    overrides: list[str] = field(default_factory=list)  # of the job's configuration, as typed

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def unfinished(self) -> bool:
        return self.state in ("waiting", "paused")

    def until(self, last_step: int) -> list[str]:
        """Its arguments to run to a step."""
        return self.arguments + ([f"stop_at={last_step}"] if last_step < self.steps else [])

    def info(self) -> dict[str, Any]:
        """The content of run.json, {} if there is none. Raises ConfigError or OSError if it is damaged."""
        return read_info(self.folder) if (self.folder / INFO).exists() else {}

    def token(self) -> str | None:
        """What the process that last began in the folder wrote into run.json; None if there is nothing to read."""
        return self._info_or_empty().get("process")

    def _info_or_empty(self) -> dict[str, Any]:
        try:
            return self.info()
        except (ConfigError, OSError):
            return {}

    def finished(self) -> bool:
        """Whether run.json says so now; `state` may be older."""
        return self._info_or_empty().get("state") == "finished"

    def read_metrics(self) -> None:
        """Read the lines that were added to metrics.jsonl since the last call. What can't be read is passed over."""
        file = self.folder / METRICS
        with suppress(OSError):
            if file.is_file():
                self._read_lines(file)
        if self.state == "running" and self.first_log is None and "step" in self.metrics:
            self.first_log = time.monotonic(), self.metrics["step"]

    def _read_lines(self, file: Path) -> None:
        if (size := file.stat().st_size) < self.position:  # a resumed run has dropped lines
            self.position = 0
        if size > LARGEST:
            return
        with file.open("rb") as stream:
            stream.seek(self.position)
            while (line := stream.readline(LONGEST)).endswith(b"\n") or len(line) == LONGEST:
                self.position += len(line)
                self.metrics |= parse_metrics(line.decode(errors="replace")) or {}

    def seconds_left(self) -> float:
        """The time that the running job still needs at its present speed; NaN while that is unknown."""
        step = self.metrics.get("step", 0)
        if self.state != "running" or self.first_log is None or step <= self.first_log[1]:
            return math.nan
        first_time, first_step = self.first_log
        return (time.monotonic() - first_time) / (step - first_step) * (self.steps - step)

    def in_use(self) -> bool:
        """Whether a process works in the folder. Where that can't be found out, the job will say why."""
        try:
            return in_use(self.folder)
        except OSError:
            return False

    def read_end(self, error: str = "") -> None:
        """Take the state from run.json after another launcher has run the job. error: that it has reported."""
        self.read_metrics()
        info = self._info_or_empty()
        state = info.get("state", "running")
        self.state = "failed" if state == "running" else state
        self.reason = info.get("error", "" if state != "running" else error or "it ended without a word")

    def fail(self, error: Exception) -> None:
        """The job can't be run for this reason."""
        self.state, self.reason = "failed", one_line(error)

    @property
    def succeeded(self) -> bool:
        return self.state in ("finished", "stopped", "paused")

    def result(self, error: SweepError) -> JobResult:
        """The job's val/loss for the sweeper, up to where it paused, or `error` if the job failed."""
        result = JobResult(overrides=self.arguments, working_dir=str(self.folder))
        result.status = JobStatus.COMPLETED if self.succeeded else JobStatus.FAILED
        result.return_value = self.metrics.get(headline(self.metrics), math.nan) if self.succeeded else error
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
