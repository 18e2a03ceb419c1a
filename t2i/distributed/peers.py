"""The processes of one run know each other: they agree on a folder, and the end of one ends the others.

torch.distributed does neither. A process that waits for one that has died gets an error of the transport (gloo), or
waits for its timeout (NCCL). Here every process has a connection to process 0: the kernel closes it when a process
dies, whatever the cause, and what ended a process is told to all. No GPU and no process group is needed.
"""

import logging
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from t2i.config import ConfigError
from t2i.config.secrets import redact
from t2i.distributed.messages import Connection
from t2i.runs.text import printable

log = logging.getLogger(__name__)
GRACE = 10  # seconds in which a process that lost another one may end in good order, for example write a checkpoint
NEWS = 2  # seconds in which the news of another process's end arrives after what it causes here


class PeerFailed(ConfigError):
    """Another process of the run has failed, and this one ends with it."""

    exit_code = 1


class Peers:
    """The other processes of this run. With `connections` to none of them, this process works alone."""

    def __init__(self, rank: int = 0, size: int = 1, connections: tuple[Connection, ...] = (), launchers: tuple = ()):
        """connections: of process 0 to all others, of another process to process 0.

        launchers: which agents of torchrun have started the processes, as `launch.agent` names them.
        """
        self.rank, self.size, self.connections, self.launchers = rank, size, connections, launchers
        self.failure: str | None = None  # what ended another process
        self.over = False  # this process has come to its end, and no longer depends on others
        self.writes = rank == 0  # whether this process notes the end in the run's folder
        self.note: Callable[[str], None] = lambda failure: None
        self.hush: Callable[[], None] = lambda: None
        self._name: str | None = None
        self._news, self._named = threading.Event(), threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True, name="peers")
        if connections:
            self._listener.start()

    def agree(self, propose: Callable[[], str]) -> str:
        """What process 0 proposes for the name of the run, the same in all processes."""
        if self._name is None and self.rank == 0:
            self._name = propose()
            self._tell(name=self._name)
        elif self._name is None:
            while not self._named.wait(0.1):
                if self.failure is not None:
                    raise PeerFailed(self.failure)
        assert self._name is not None
        return self._name

    def outlive(self, patience: float) -> None:
        """Wait until those processes have ended to which this one has connections; at most so many seconds."""
        if self.connections:
            self._listener.join(patience)

    @contextmanager
    def reporting(self) -> Generator[None]:
        """Tell the others what ends this process: an error, or its work."""
        try:
            yield
        except PeerFailed:
            raise
        except Exception as error:
            self._report(error)
            raise
        except SystemExit as error:
            if error.code:
                self._report(error)
            raise
        except KeyboardInterrupt:  # the others have received the signal, too, and may be writing a checkpoint
            self._leave()
            raise
        else:
            self._leave()

    @contextmanager
    def blamed(self, hush: Callable[[], None] = lambda: None) -> Generator[None]:
        """Within, an error that is a consequence of another process's end is raised as PeerFailed, which names it.

        hush: called when another process has failed, before that has consequences.
        """
        self.hush = hush
        try:
            yield
        except (RuntimeError, KeyboardInterrupt) as error:  # of torch.distributed; torchrun's SIGTERM to those left
            if self.connections:
                self._news.wait(NEWS)
            if self.failure is not None:
                raise PeerFailed(f"{self.failure}; this process ends with it") from (
                    None if isinstance(error, KeyboardInterrupt) else error
                )
            raise

    def _report(self, error: BaseException) -> None:
        self.over = True
        text = f"exit code {error.code}" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        self._tell(failed=f"{self._called(self.rank, socket.gethostname())} failed: {redact(' '.join(text.split()))}")
        _write_error_file(error)

    def _leave(self) -> None:
        self.over = True
        self._tell(over=True)

    def _called(self, rank: int, host: str) -> str:
        return f"process {rank} of {self.size} on {host}"

    def _tell(self, but: Connection | None = None, **message: Any) -> None:
        for connection in self.connections:
            if connection is not but:
                with suppress(OSError):
                    connection.send(**message)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection in self.connections:
                selector.register(connection, selectors.EVENT_READ, connection)
                for message in connection.waiting:  # it came while the connection was made
                    self._hear(connection, message)
                connection.waiting = []
            while selector.get_map():
                for key, _ in selector.select():
                    connection = key.data
                    messages = connection.read()
                    if messages is None:
                        selector.unregister(connection)
                        self._lose(connection)
                    for message in messages or ():
                        self._hear(connection, message)

    def _hear(self, connection: Connection, message: dict[str, Any]) -> None:
        if "name" in message:
            self._name = message["name"]
            self._named.set()
        if "over" in message:
            connection.over = True
        if "failed" in message:
            connection.over = True
            self._fail(message["failed"], connection)

    def _lose(self, connection: Connection) -> None:
        if not connection.over:
            self.writes = self.writes or (connection.rank == 0 and self.rank == 1)
            name = self._called(connection.rank, connection.host)
            self._fail(f"{name} has died without a word (killed? out of memory?); see its output", connection)

    def _fail(self, failure: str, source: Connection) -> None:
        if self.failure is None and not self.over:
            self.failure = failure
            self.hush()
            self._news.set()
            self._tell(but=source, failed=failure)
            threading.Thread(target=self._end, daemon=True, name="end").start()

    def _end(self) -> None:
        """End this process where its main thread has not come to an end: it may wait for the other one for ever."""
        time.sleep(GRACE)
        if not self.over:
            if self.writes:
                with suppress(Exception):
                    self.note(str(self.failure))
            _exit(f"{self.failure}; this process ends with it")


def _exit(message: str) -> NoReturn:
    with suppress(OSError):
        os.write(2, printable(f"t2i: {message}\n").encode())
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(1)


def _write_error_file(error: BaseException) -> None:
    """Let torchrun's summary name the error, not only the exit code."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ and isinstance(error, Exception):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        with suppress(OSError):
            get_error_handler().record_exception(error)
