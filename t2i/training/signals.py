"""Stopping in good order: a signal, or the end of the allowed time, lets the step finish and the run save itself."""

import signal
import threading
import time
from types import TracebackType
from typing import Any

# SIGUSR1 is what SLURM sends before it takes a node away.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Stop:
    """Asked after every step whether to stop.

    While `patient`, the first signal is only noted, and a second ends the run at once; else the first does. A handler
    of SIGUSR1 that was there before (submitit's, which queues the job again) gets its turn when the run is saved.
    max_hours: of this process; null = no limit.
    """

    def __init__(self, max_hours: float | None):
        self.deadline = float("inf") if max_hours is None else time.monotonic() + max_hours * 3600
        self.signum: int | None = None
        self.patient = False
        self.asked_at, self.longest = time.monotonic(), 0.0

    def __call__(self) -> bool:
        """Whether to stop now: after a signal, or if the next step might not end in time."""
        now = time.monotonic()
        self.longest, self.asked_at = max(self.longest, now - self.asked_at), now
        return self.signum is not None or now + 2 * self.longest > self.deadline

    def __enter__(self) -> "Stop":
        in_main_thread = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
        self.before = {each: signal.signal(each, self._note) for each in SIGNALS} if in_main_thread else {}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)
        if isinstance(error, Interrupted) and error.signum == getattr(signal, "SIGUSR1", None):
            handler = self.before.get(error.signum)
            if callable(handler):
                handler(error.signum, None)

    def _note(self, signum: int, frame: Any) -> None:
        if self.signum is not None or not self.patient:
            raise Interrupted(signum)
        self.signum = signum
