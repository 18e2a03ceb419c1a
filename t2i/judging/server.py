"""Serves the page of a session on 127.0.0.1, to the browsers of this machine and to nobody else.

The address holds a token, without which nothing is answered. Other pages in the same browser can't reach it: they don't
know the token, a request must name this machine as its host (a foreign name that resolves to 127.0.0.1 does not) and
its own page as its origin.
"""

import json
import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from t2i.config import ConfigError
from t2i.judging.session import Session, judge_name
from t2i.runs.judgements import CHOICES
from t2i.runs.text import one_line

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
LARGEST = 10_000  # bytes of a request
FILES = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Server(ThreadingHTTPServer):
    """A server on a port of this machine; 0 takes a free one."""

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0, name: str = ""):
        self.session, self.judge, self.token = session, name, secrets.token_urlsafe(18)
        super().__init__((ADDRESS, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closed its tab in the middle of an answer is no error."""


class Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "t2i", ""
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may be idle

    @property
    def own(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def do_GET(self) -> None:
        path = self._path()
        if path is None:
            return self._answer(403, "text/plain", b"Open the address that t2i judge printed.\n")
        if path in FILES:
            content = Path(__file__).with_name(path or "page.html").read_bytes()
            return self._answer(200, FILES[path], content)
        if path.startswith("images/") and (png := self.own.session.png(path.removeprefix("images/"))):
            return self._answer(200, "image/png", png, "private, max-age=3600, immutable")
        return self._answer(404, "text/plain", b"There is no such page.\n")

    def do_POST(self) -> None:
        path, request = self._path(), self._request()
        if path is None or request is None:
            self.close_connection = True
            return self._answer(403, "text/plain", b"This is not a request of the page that t2i judge serves.\n")
        try:
            status, answer = 200, self._handle(path, request)
        except (ConfigError, OSError) as error:
            status, answer = 409, {"error": one_line(error)}
        return self._answer(status, "application/json", json.dumps(answer).encode())

    def _handle(self, path: str, request: dict[str, str]) -> dict[str, Any]:
        session, given = self.own.session, request.get("judge", "") or self.own.judge
        if path == "state" and not given:
            return {"judge": ""}
        judge = judge_name(given)
        match path, request.get("choice"):
            case "state", _:
                return session.state(judge)
            case "vote", choice if choice in CHOICES:
                return session.vote(judge, request.get("id", ""), choice)
            case "undo", _:
                return session.undo(judge)
        raise ConfigError("the page asked for what this version of t2i does not know; reload it")

    def _path(self) -> str | None:
        """The path behind the token; None if the request does not come from a page of this server."""
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        if host.rpartition(":")[0] not in HOSTS or (origin is not None and origin != f"http://{host}"):
            return None
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return None
        _, token, path = ("/", *urlsplit(self.path).path.lstrip("/").partition("/")[::2])
        return path if secrets.compare_digest(token.encode(), self.own.token.encode()) else None

    def _request(self) -> dict[str, str] | None:
        """The texts that the page sent as JSON; None for anything else."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Content-Type") != "application/json" or not length.isdecimal() or int(length) > LARGEST:
            return None
        try:
            request = json.loads(self.rfile.read(int(length)))
        except ValueError:
            return None
        fine = isinstance(request, dict) and all(isinstance(value, str) for value in request.values())
        return request if fine else None

    def _answer(self, status: int, kind: str, content: bytes, caching: str = "no-store") -> None:
        self.send_response(status)
        charset = "" if kind == "image/png" else "; charset=utf-8"
        headers = {"Content-Type": kind + charset, "Content-Length": str(len(content)), "Cache-Control": caching}
        for name, value in (headers | HEADERS).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""
