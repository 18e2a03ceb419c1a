"""Short messages between the processes of a run, over TCP: one JSON object in each line."""

import json
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import Any

LONGEST = 100_000  # bytes of a message
SILENCE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, times: then a node is lost


@dataclass(eq=False)
class Connection:
    """A connection to the process `rank`, which works on `host`."""

    socket: socket.socket
    rank: int
    host: str
    over: bool = False  # the other process has said that it is done
    buffer: bytes = field(default=b"", repr=False)
    waiting: list[dict[str, Any]] = field(default_factory=list)  # what came together with a message that was read

    def __post_init__(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in SILENCE.items():
            if hasattr(socket, name):  # not on macOS
                self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, **message: Any) -> None:
        """Raises OSError if the other process has gone."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived, as soon as anything has; None if the other process has gone."""
        if self.waiting:
            arrived, self.waiting = self.waiting, []
            return arrived
        try:
            received = self.socket.recv(LONGEST)
            *lines, self.buffer = (self.buffer + received).split(b"\n")
            if not received or len(self.buffer) > LONGEST:
                return None
            messages = [json.loads(line) for line in lines]
            return messages if all(isinstance(message, dict) for message in messages) else None
        except (OSError, ValueError, RecursionError):
            return None

    def read_one(self, timeout: float) -> dict[str, Any]:
        """The next message. Raises OSError if none comes within `timeout` seconds, however slowly a stranger sends."""
        deadline = time.monotonic() + timeout
        messages: list[dict[str, Any]] | None = []
        while not messages:
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            messages = self.read()
            if messages is None or (not messages and time.monotonic() > deadline):
                raise ConnectionError("closed, silent, or not a process of this run")
        self.socket.settimeout(None)
        first, *self.waiting = messages
        return first


class Listener:
    """Where the other processes connect to; only those that know `secret` are heard."""

    def __init__(self) -> None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self.socket = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=both)
        self.port: int = self.socket.getsockname()[1]
        self.secret = secrets.token_hex(16)

    def accept(self, timeout: float) -> tuple[Connection, dict[str, Any]] | None:
        """The next process and how it introduces itself; None for strangers. Raises TimeoutError if nobody comes."""
        self.socket.settimeout(timeout)
        accepted, _ = self.socket.accept()
        connection = Connection(accepted, -1, "")
        try:
            hello = connection.read_one(timeout=5)
            if not secrets.compare_digest(str(hello.get("secret")), self.secret):
                raise ValueError("a stranger")
            connection.rank, connection.host = int(hello["rank"]), str(hello["host"])
            connection.send(secret=self.secret[::-1], host=socket.gethostname())  # the secret was known here before
        except (OSError, ValueError, KeyError, TypeError):
            accepted.close()
            return None
        return connection, hello

    def close(self) -> None:
        self.socket.close()


def introduce(host: str, port: int, secret: str, own_rank: int, own_host: str, **more: Any) -> Connection:
    """Connect to the listener of process 0. Raises OSError or ValueError if it is not there, or another process is."""
    connection = Connection(socket.create_connection((host, port), timeout=5), 0, host)
    try:
        connection.send(secret=secret, rank=own_rank, host=own_host, **more)
        answer = connection.read_one(timeout=5)
        if answer.get("secret") != secret[::-1]:
            raise ValueError("another process listens there")
        connection.host = str(answer.get("host", host))
    except BaseException:
        connection.socket.close()
        raise
    return connection
