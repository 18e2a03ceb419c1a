"""A small stand-in for the Hub on 127.0.0.1: it answers what the real client asks to push a folder or fetch a file.

It takes plain uploads (HF_HUB_DISABLE_XET=1): small files in the commit, weights and images through LFS.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_this-is-a-secret"
LARGE = (".safetensors", ".png")
COMMIT = "0" * 40  # the only one


class Hub(ThreadingHTTPServer):
    """repositories: {id: {path: content}}. faults: [(pattern of the path, status or "drop")], each used once."""

    def __init__(self, role: str = "write"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.role, self.faults = role, []
        self.repositories, self.private, self.objects = {}, {}, {}
        self.asked, self.seen = [], b""  # the requests as METHOD PATH, and all their bodies

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running(**settings) -> Iterator[Hub]:
    hub = Hub(**settings)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


@contextmanager
def asked_instead(monkeypatch) -> Iterator[Hub]:
    """Let the client talk to a stand-in instead of the Hub."""
    from huggingface_hub import constants

    with running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.seen += body
        for fault in self.server.faults:
            pattern, status = fault
            if re.search(pattern, self.path):
                self.server.faults.remove(fault)
                return self.hang_up() if status == "drop" else self.answer({"error": f"fault {status}"}, status)
        if self.path.startswith("/api/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        for method, pattern, reply in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, self.path.partition("?")[0])):
                return reply(self, body, *match.groups())
        return self.answer({"error": f"nothing at {self.path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = do

    def answer(self, value: dict, status: int = 200):
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def send(self, content: bytes, status: int, headers: dict[str, str]):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def hang_up(self):
        self.close_connection = True

    def whoami(self, _):
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.server.role}}
        self.answer({"type": "user", "name": "tester", "orgs": [{"name": "lab"}], "auth": access})

    def create(self, body):
        asked = json.loads(body)
        repo = f"{asked['organization'] or 'tester'}/{asked['name']}"
        status = 409 if repo in self.server.repositories else 200
        self.server.repositories.setdefault(repo, {})
        self.server.private.setdefault(repo, asked.get("visibility") == "private")
        self.answer({"url": f"{self.server.address}/{repo}", "name": repo}, status)

    def validate(self, _):
        self.answer({"errors": [], "warnings": []})

    def preupload(self, body, _):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer({"files": files})

    def batch(self, body, _):
        objects = [
            each | {"actions": {"upload": {"href": f"{self.server.address}/lfs/{each['oid']}?X-Signature=secret"}}}
            for each in json.loads(body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.answer({})

    def commit(self, body, repo):
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.server.repositories[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.server.repositories[repo][value["path"]] = self.server.objects[value["oid"]]
        self.answer({"commitUrl": f"{self.server.address}/{repo}/commit/0", "commitOid": COMMIT})

    def dataset(self, _, repo):
        known = repo in self.server.repositories
        self.answer({"id": repo, "sha": COMMIT} if known else {"error": "Repository not found"}, 200 if known else 404)

    def tree(self, _, repo):
        files = self.server.repositories[repo].items()
        oid = {name: hashlib.sha1(content).hexdigest() for name, content in files}
        self.answer([{"type": "file", "path": name, "size": len(file), "oid": oid[name]} for name, file in files])

    def file(self, _, repo, name):
        content = self.server.repositories[repo].get(name)
        if content is None:
            return self.send(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        self.send(content, 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})


ROUTES = (
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", "/api/models/([^/]+/[^/]+)/preupload/main", Handler.preupload),
    ("POST", "/([^/]+/[^/]+).git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", Handler.store),
    ("POST", "/api/models/([^/]+/[^/]+)/commit/main", Handler.commit),
    ("GET", "/api/datasets/([^/]+/[^/]+)", Handler.dataset),
    ("GET", f"/api/datasets/([^/]+/[^/]+)/tree/{COMMIT}", Handler.tree),
    ("HEAD", f"/datasets/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", Handler.file),
    ("GET", f"/datasets/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", Handler.file),
)
