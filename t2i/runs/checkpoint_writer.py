"""Checkpoints that are written while the run goes on, from copies of what they hold."""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from t2i.config.out_of_memory import lacking
from t2i.hardware.host_memory import available_memory
from t2i.runs import checkpoints
from t2i.runs.checkpoints import Stateful
from t2i.runs.host_copies import HostCopies

log = logging.getLogger(__name__)
SPARE = 2**30  # bytes of the host's memory that copies leave to the rest of the run


class CheckpointWriter:
    """Writes the checkpoints of a run one after the other; for how and where see `checkpoints.write`.

    In the background, `save` returns as soon as copies of the state are under way. The next `save` waits until they are
    written, and so does the end of the `with` block. What went wrong is raised by the next call of any method. Where
    the host's memory has no room for the copies, checkpoints are written in the foreground, and a warning says so.
    """

    def __init__(
        self,
        folder: Path,
        keep: int | str,
        keep_at: Collection[int],
        background: bool,
        writes: bool = True,
        unbroken: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        """writes: whether this process writes; the others only contribute their slices of sharded parts.

        unbroken: a context in which no signal ends the run.
        """
        self.folder, self.keep, self.keep_at = folder, keep, keep_at
        self.background, self.writes, self.unbroken = background, writes, unbroken
        self.copies = HostCopies()
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def save(
        self,
        step: int,
        parts: Mapping[str, Stateful],
        losses: Mapping[int, float],
        vouched: Mapping[str, int],
        done: Callable[[], None],
    ) -> None:
        """Write the checkpoint of a step. Raises NotSaved, also for the one before.

        losses: step -> val/loss. vouched: the run's records that it vouches for. done: called when it is complete.
        """
        self.wait()
        with self.unbroken():
            states = self._states(parts)
            if not self.writes:
                return
            if not self.background:
                self.copies.wait()
                self._write(step, states, losses, vouched, done)
                return
            checkpoint = (step, states, losses, vouched, done)
            self.thread = threading.Thread(target=self._attempt, args=checkpoint, name=f"checkpoint of step {step}")
            self.thread.start()

    def check(self) -> None:
        """Raise what went wrong in the background, if something has."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete; raise what went wrong."""
        if self.thread is not None:
            with self.unbroken():
                self.thread.join()
                self.thread = None
        self.check()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        except Exception as another:
            if error is None:
                raise
            log.warning("%s", another)

    def _states(self, parts: Mapping[str, Stateful]) -> dict[str, dict]:
        """The states, one after the other; in the background, copies of them as long as there is room."""
        self.copies.reuse()
        room = available_memory() + sum(map(len, self.copies.blocks)) - SPARE if self.background else 0
        states = {}
        for name, part in parts.items():
            state = part.state_dict()
            if self.writes and self.background:
                room -= checkpoints.size_of(state)
                state = self._copy(state) if room > 0 else self._in_the_foreground(state, "it has too little")
            if self.writes:
                states[name] = state
        return states

    def _copy(self, state: dict) -> dict:
        try:
            return self.copies.of(state, clone=True)
        except (RuntimeError, MemoryError) as error:
            if lacking(error) != "host":
                raise
            return self._in_the_foreground(state, str(error).partition("\n")[0] or "it has too little")

    def _in_the_foreground(self, state: dict, reason: str) -> dict:
        self.background = False
        log.warning(
            "save_in_background: the host's memory has no room for a copy of a checkpoint (%s); the run waits while "
            "checkpoints are written",
            reason,
        )
        return state

    def _attempt(self, *checkpoint: object) -> None:
        try:
            self.copies.wait()
            self._write(*checkpoint)  # pyrefly: ignore
        except BaseException as error:
            self.error = error

    def _write(
        self,
        step: int,
        states: Mapping[str, dict],
        losses: Mapping[int, float],
        vouched: Mapping[str, int],
        done: Callable[[], None],
    ) -> None:
        checkpoints.write(self.folder, step, states, self.keep, losses, vouched, self.keep_at)
        done()
