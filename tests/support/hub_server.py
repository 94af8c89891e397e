"""A hub on loopback: the few endpoints of Hugging Face that the library asks for a listing and a file."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" * 6 + "c0ff"
REPO = "pack/tiny-GGUF"


@dataclass
class FakeHub:
    """What it holds, and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    gated: bool = False
    token: str = ""  # what opens it, when it is gated
    cut_at: int = 0  # byte of a file where the connection ends; 0: never
    flips: bool = False  # sends other bytes than it said
    knows_ranges: bool = True
    starts: list[int] = field(default_factory=list)  # of bodies that were asked for
    url: str = ""


@contextmanager
def fake_hub(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve until the end of the block."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/(.+)/revision/(.+)", path):
            self._listing(*match.groups())
        elif match := re.fullmatch(r"/(.+)/resolve/([0-9a-f]{40})/(.+)", path):
            self._file(match[3])
        else:
            self._refuse(404, "EntryNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _listing(self, repo: str, revision: str) -> None:
        if repo != REPO:
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            siblings = [
                {"rfilename": name, "size": len(content), "lfs": _lfs(content) if name.endswith("gguf") else None}
                for name, content in self.hub.files.items()
            ]
            body = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        hub = self.hub
        if hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(403, "GatedRepo")
            return
        content = hub.files[name]
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and hub.knows_ranges:
            start = int(match[1])
        hub.starts.append(start)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        body = content[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if hub.flips:
            body = body[:-1] + bytes([body[-1] ^ 1])
        self._send(206 if start else 200, body, headers, hub.cut_at - start if hub.cut_at else len(body))

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str], count: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:count])

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _lfs(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
