"""Stopping in good order: after a signal or at the end of the time limit, the step finishes and the run is saved."""

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType


def _signals(*names: str) -> list[signal.Signals]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


WARNINGS = _signals("SIGUSR1", "SIGUSR2")  # that a scheduler sends before it takes a node away, perhaps several times
SIGNALS = [*_signals("SIGINT", "SIGTERM", "SIGHUP"), *WARNINGS]  # a closed terminal sends SIGHUP
MARGIN = 60.0  # seconds between the last step's end and the end of the job; of short jobs, a tenth of their time


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Stop:
    """Says after every step whether the run should stop.

    A signal ends the run at once, except within `patiently()`: there the first signal is only noted, for `Stop` to
    report it after the step, and the second one ends the run. A signal that the process was told to ignore, as SIGHUP
    is by nohup and SIGINT by a shell's &, stays ignored. After SIGUSR1 or SIGUSR2 (in a Slurm job: or SIGTERM), only
    SIGINT ends the run at once: the scheduler, which may warn again, kills it when there is no more time. If SIGUSR1 or
    SIGUSR2 had a handler before (submitit's, which requeues the job), that handler is called once the run is saved.

    max_hours: time limit for this process; None means no limit.
    """

    def __init__(self, max_hours: float | None, answers: bool = True, ends_at: float | None = None):
        """answers: whether this process says what a signal does.

        ends_at: when the scheduler ends this process, as time.time() counts; None: nobody does, or nobody knows.
        """
        self.answers = answers
        self.warnings = [*WARNINGS, signal.SIGTERM] if "SLURM_JOB_ID" in os.environ else WARNINGS
        self.deadline = float("inf") if max_hours is None else time.monotonic() + max_hours * 3600
        self.last_moment = float("inf") if ends_at is None else _last_moment(ends_at)
        self.signum: int | None = None
        self._patient = self._saving = self._again = False
        self._asked_at, self._longest_step = time.monotonic(), 0.0
        self._previous_handlers: dict[int, signal._HANDLER] = {}

    def __call__(self) -> bool:
        """Whether to stop now: a signal was received, or the next step might not end in time.

        Shortly before the scheduler ends the process, this acts as if SIGUSR2 had been received.
        """
        now = time.monotonic()
        self._longest_step, self._asked_at = max(self._longest_step, now - self._asked_at), now
        if self.signum is None and now + 2 * self._longest_step > self.last_moment:
            self.signum = WARNINGS[-1]
            self._answer(self.signum, "the time of this job is almost up; the run ends after this step, and is saved")
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
        if isinstance(error, Interrupted) and error.signum in WARNINGS:
            handler = self._previous_handlers.get(error.signum)
            if callable(handler):
                handler(error.signum, None)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        first, self.signum = self.signum is None, signum if self.signum is None else self.signum
        if not first and self.signum in self.warnings and signum != signal.SIGINT:
            return
        if self._saving and not first:
            self._again = True
            self._answer(signum, "the checkpoint is being written; the run ends as soon as it is complete")
        elif not first or not self._patient:
            raise Interrupted(signum)
        else:
            self._answer(
                signum,
                "the run ends after this step, and is saved; a validation or samples that have begun are finished "
                f"first. {'SIGINT' if signum in self.warnings else 'The same again'} ends it at once, without the "
                "steps since the last checkpoint",
            )

    def _answer(self, signum: int, text: str) -> None:
        """Say what happens, by the system's own write: a signal may come in the middle of a print."""
        if self.answers:
            with suppress(OSError):
                os.write(2, f"\nt2i: {signal.Signals(signum).name}: {text}\n".encode())


def _last_moment(ends_at: float) -> float:
    """The time, as time.monotonic() counts, up to which steps may last in a process that ends at `ends_at`."""
    left = ends_at - time.time()
    return time.monotonic() + left - min(MARGIN, left / 10) if left > 0 else float("inf")
