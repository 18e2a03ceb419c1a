"""Stopping in good order: after a signal or at the end of the time limit, the step finishes and the run is saved."""

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

# SLURM sends SIGUSR1 before it takes a node away, a closed terminal sends SIGHUP.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Stop:
    """Says after every step whether the run should stop.

    A signal ends the run at once, except within `patiently()`: there the first signal is only noted, for `Stop` to
    report it after the step, and the second one ends the run. A signal that the process was told to ignore, as SIGHUP
    is by nohup and SIGINT by a shell's &, stays ignored. If SIGUSR1 had a handler before (submitit's, which requeues
    the job), that handler is called once the run is saved.

    max_hours: time limit for this process; None means no limit.
    """

    def __init__(self, max_hours: float | None, answers: bool = True):
        """answers: whether this process says what a signal does."""
        self.answers = answers
        self.deadline = float("inf") if max_hours is None else time.monotonic() + max_hours * 3600
        self.signum: int | None = None
        self._patient = self._saving = self._again = False
        self._asked_at, self._longest_step = time.monotonic(), 0.0
        self._previous_handlers: dict[int, signal._HANDLER] = {}

    def __call__(self) -> bool:
        """Whether to stop now: a signal was received, or the next step might not end in time."""
        now = time.monotonic()
        self._longest_step, self._asked_at = max(self._longest_step, now - self._asked_at), now
        return self.signum is not None or now + 2 * self._longest_step > self.deadline

    @contextmanager
    def patiently(self) -> Generator[None]:
        """Within, the first signal lets the step finish."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    @contextmanager
    def unbroken(self) -> Generator[None]:
        """Within, no signal ends the run: a checkpoint is written to its end first."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False
        if self._again and self.signum is not None:
            raise Interrupted(self.signum)

    def hush(self) -> None:
        """Say nothing of further signals: torchrun sends one to the processes that have lost another."""
        self.answers = False

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in the main thread only
            taken = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]  # as nohup wants
            self._previous_handlers = {signum: signal.signal(signum, self._note) for signum in taken}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)
        if isinstance(error, Interrupted) and error.signum == getattr(signal, "SIGUSR1", None):
            handler = self._previous_handlers.get(error.signum)
            if callable(handler):
                handler(error.signum, None)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        first, self.signum = self.signum is None, signum if self.signum is None else self.signum
        if self._saving and not first:
            self._again = True
            self._answer(signum, "the checkpoint is being written; the run ends as soon as it is complete")
        elif not first or not self._patient:
            raise Interrupted(signum)
        else:
            self._answer(
                signum,
                "the run ends after this step, and is saved; a validation or samples that have begun are finished "
                "first. The same again ends it at once, without the steps since the last checkpoint",
            )

    def _answer(self, signum: int, text: str) -> None:
        """Say what happens, by the system's own write: a signal may come in the middle of a print."""
        if self.answers:
            with suppress(OSError):
                os.write(2, f"\nt2i: {signal.Signals(signum).name}: {text}\n".encode())
