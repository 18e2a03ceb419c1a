"""A command of t2i in a process of its own, with its output shown here, and its errors raised here.

Python code that trains could do so in its own process. But a notebook lives on: memory of the GPU, threads, handlers of
signals, the logging that Hydra sets up and the state of accelerate would stay behind, and the next run would find them.
"""

import codecs
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO

from t2i.config import ConfigError

KEPT = 20_000  # characters of the output that are searched for the reason of a failure
FORCED = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")  # by Jupyter: a pipe would be taken for a terminal


class RunFailed(RuntimeError):
    """A run, or a job of a sweep, has failed; the message is its last line, and the output above says more."""


def call(arguments: Sequence[str], show: bool, advice: str = "") -> None:
    """Run `t2i ARGUMENTS` to its end. show: print what it prints, with its bar if this is a terminal.

    advice: for the message of an interruption. Raises ConfigError for what the user can fix, RunFailed for what went
    wrong on the way. KeyboardInterrupt is passed on first, so that the run writes a checkpoint; a second one ends it at
    once.
    """
    terminal = show and _is_terminal()
    forced = () if terminal else FORCED
    environment = {name: value for name, value in os.environ.items() if name not in forced}
    with subprocess.Popen(
        [sys.executable, "-m", "t2i.api.child", *arguments],
        stdin=subprocess.PIPE,
        stdout=None if terminal else subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | {"PYTHONUNBUFFERED": "1"},
        process_group=0,  # Ctrl-C reaches this process only, which passes it on
    ) as process:
        outputs = [_Output(stream, write) for stream, write in _streams(process, show)]
        interrupted = _wait(process)
        for output in outputs:
            output.thread.join()
    _raise(process.returncode, outputs[-1].kept, interrupted, advice)


def _wait(process: subprocess.Popen) -> bool:
    """Wait for the end; returns whether it was interrupted."""
    interrupted = False
    while True:
        try:
            process.wait()
            return interrupted
        except KeyboardInterrupt:
            interrupted = True
            process.send_signal(signal.SIGINT)


def _raise(code: int, errors: str, interrupted: bool, advice: str) -> None:
    if interrupted or code == 128 + signal.SIGINT:
        error = KeyboardInterrupt("the run was interrupted")
        if advice:
            error.add_note(advice)
        raise error
    if code == 0:
        return
    reason = errors.rpartition("\nt2i: ")[2] if "\nt2i: " in f"\n{errors}" else errors
    reason = reason.removeprefix("t2i: ").strip()
    if code == 2:
        raise ConfigError(reason)
    if code < 0:
        raise RunFailed(f"the process was killed by {signal.Signals(-code).name}")
    raise RunFailed(reason.splitlines()[-1] if reason else f"the process ended with exit code {code}")


class _Output:
    """Copies what a process writes, as it comes. kept: its end."""

    def __init__(self, stream: IO[bytes], write: Callable[[str], object]):
        self.stream, self.write, self.kept = stream, write, ""
        self.thread = threading.Thread(target=self._copy, daemon=True)
        self.thread.start()

    def _copy(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while chunk := os.read(self.stream.fileno(), 65536):
            text = decoder.decode(chunk)
            self.kept = (self.kept + text)[-KEPT:]
            with suppress(OSError, ValueError):  # whoever showed it has gone
                self.write(text)


def _streams(process: subprocess.Popen, show: bool) -> list[tuple[IO[bytes], Callable[[str], object]]]:
    """The pipes of a process, the errors last, and what shows them."""
    return [(stream, _writer(name, show)) for name in ("stdout", "stderr") if (stream := getattr(process, name))]


def _writer(name: str, show: bool) -> Callable[[str], object]:
    """Writes to sys.stdout or sys.stderr as they are now: a notebook replaces them."""
    if not show:
        return lambda text: None
    stream = getattr(sys, name)

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


def _is_terminal() -> bool:
    """Whether sys.stdout is the terminal itself, so that a bar can be drawn in it."""
    try:
        return sys.stdout.isatty() and sys.stdout.fileno() == 1
    except (AttributeError, OSError, ValueError):
        return False
