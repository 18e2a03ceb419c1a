"""The process of a job: how the sweep starts, interrupts and ends it, and what it does."""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from t2i.config import ConfigError
from t2i.runs.folder import Run
from t2i.runs.text import one_line
from t2i.sweeps.job import Job

PATIENCE = 60  # seconds that an interrupted job has to write its checkpoint
END = 100_000  # bytes of a job's output in which its last line is looked for


class JobAtWork(ABC):
    """A job that some process works on."""

    job: Job
    before: str | None  # the token in run.json before the process was started

    @property
    @abstractmethod
    def alive(self) -> bool: ...

    @abstractmethod
    def interrupt(self) -> None:
        """Ask the job's processes to write a checkpoint and end."""

    @abstractmethod
    def end(self, patience: float) -> None:
        """Wait `patience` seconds for the process to end, then kill it, and record its end."""

    @abstractmethod
    def cause_of_death(self) -> str:
        """Why the process ended without a word in run.json."""

    def record_end(self) -> None:
        """Take the job's state from run.json, or write it there if the process died before it could do so.

        Damage of any kind in the job's folder only makes the job fail, with a reason that names it.
        """
        self.job.read_metrics()
        info: dict[str, Any] = {}
        try:
            info = self.job.info()
            if info.get("process") == self.before:  # an earlier process wrote it
                info = {}
            if info.get("state", "running") == "running":
                info = {"state": "failed", "error": self.cause_of_death()}
                Run.mark(self.job.folder, **info)
        except (ConfigError, OSError) as error:
            cause = info.get("error") or self.cause_of_death()
            info = {"state": "failed", "error": f"{cause}; its end could not be noted: {one_line(error)}"}
        self.job.state, self.job.reason = info["state"], info.get("error", "")


@dataclass
class Losses:
    """How often a job lost its node without having got any further."""

    allowed: int
    number: int = 0
    step: float = -1.0

    def again(self, step: float) -> bool:
        """Note another loss at this step. Whether the job is to begin again."""
        self.number = self.number + 1 if step <= self.step else 1
        self.step = max(step, self.step)
        return self.number <= self.allowed


@dataclass
class JobProcess(JobAtWork):
    """A job that a process of this machine works on."""

    job: Job
    device: str | None  # the GPU that the job was given, as in CUDA_VISIBLE_DEVICES
    process: BaseProcess
    before: str | None = None

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def interrupt(self) -> None:
        send(self.process, signal.SIGINT)

    def end(self, patience: float) -> None:
        end(self.process, patience)
        self.record_end()

    def cause_of_death(self) -> str:
        return cause_of_death(self.process.exitcode or 0, self.job.folder / "console.log")


def end(process: BaseProcess, patience: float) -> None:
    """Wait for a process of `run_job`, then kill it and its children."""
    process.join(patience)
    if process.is_alive():
        send(process, signal.SIGKILL)
        process.join()


def send(process: BaseProcess, number: signal.Signals) -> None:
    """Send a signal to a process of `run_job` and to its children."""
    if process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def run_job(
    main: Callable[[], Any],
    arguments: list[str],
    console: Path,
    environment: dict[str, str],
    threads: int | None,
    command: str | None,
) -> None:
    """Run `python -m t2i.train ARGUMENTS`, or `command` instead, with its output appended to the file `console`."""
    os.setpgrp()  # Ctrl-C in the terminal reaches the sweep only, which passes it on
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a sweep in the background, by a shell's &, ignores it
    output = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    if command:
        code = subprocess.call([*shlex.split(command), *arguments])
        sys.exit(code if code >= 0 else 128 - code)
    if threads:
        import torch

        torch.set_num_threads(threads)
    sys.argv = ["t2i.train", *arguments]
    main()


def _end_with_the_sweep() -> None:
    """Interrupt this job when the sweep's process has died, so that a new sweep process can take it over."""
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        os.killpg(os.getpgrp(), signal.SIGINT)


def cause_of_death(code: int, console: Path) -> str:
    """Why a process with this exit code ended: the signal, or the last line of its output."""
    if code < 0:
        return killed_by(-code)
    last = "".join(last_lines(console, 1))
    return f"exit code {code}: {last.removeprefix('t2i: ')}"


def killed_by(number: int) -> str:
    names = {each.value: each.name for each in signal.Signals}  # most real-time signals have none
    return f"killed by {names.get(number, f'signal {number}')}" + (
        " (out of memory?)" if number == signal.SIGKILL else ""
    )


def last_lines(file: Path, number: int) -> list[str]:
    """The last lines of a job's output that are not blank; [] if there is none."""
    lines: list[str] = []
    with suppress(OSError), file.open("rb") as output:
        output.seek(-min(END, file.stat().st_size), os.SEEK_END)
        lines = output.read(END).decode(errors="replace").split("\n")
    return [line.strip() for line in lines if line.strip()][-number:]
