"""A real HTTP server on loopback that speaks OpenAI's form, with faults by script: what a remote model asks."""

from __future__ import annotations

import json
import select
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """How the server meets one request. By default it answers with the last words turned round, letter by letter."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None  # of a status that is not 200, or instead of an answer
    deltas: tuple[Mapping[str, Any], ...] | None = None  # of a chat, instead of the words
    finish: str = "stop"
    piece_s: float = 0  # before each piece
    silent_s: float = 0  # before the first byte of the answer
    cut_after: int | None = None  # pieces, then the connection breaks
    hang_up: bool = False  # at once, without an answer
    error: Any = None  # an event with this error comes behind the pieces
    usage: Mapping[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    )


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    at: float


class OpenAIServer:
    """Meets the next request as the next of `script` says, then all others as `usual` does."""

    def __init__(self, *, key: str = "", model: str = "big") -> None:
        self.key = key
        self.model = model
        self.usual = Reply()
        self.script: deque[Reply] = deque()
        self.seen: list[Seen] = []
        self.num_left = 0  # answers whose reader closed the connection
        self.num_at_once = self.most_at_once = 0
        self.lists_models = True
        self._lock = threading.Lock()
        server = self

        class Handler(_Handler):
            openai = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Of the requests that came."""
        return [seen.body for seen in self.seen]

    def next_reply(self, seen: Seen) -> Reply:
        with self._lock:
            self.seen.append(seen)
            return self.script.popleft() if self.script else self.usual

    def count(self, change: int) -> None:
        with self._lock:
            self.num_at_once += change
            self.most_at_once = max(self.most_at_once, self.num_at_once)

    def left(self) -> None:
        with self._lock:
            self.num_left += 1

    def start(self) -> None:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def openai_server(*, key: str = "", model: str = "big") -> Iterator[OpenAIServer]:
    """A running server."""
    server = OpenAIServer(key=key, model=model)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class _Gone(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    openai: OpenAIServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self._is_stranger():
            return
        if self.path == "/v1/models" and self.openai.lists_models:
            self._json(200, {"object": "list", "data": [{"id": self.openai.model, "object": "model"}]})
        else:
            self._json(404, {"error": {"message": "no such page", "type": "invalid_request_error"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seen = Seen(self.path, {name.lower(): value for name, value in self.headers.items()}, body, time.monotonic())
        reply = self.openai.next_reply(seen)
        if self._is_stranger():
            return
        self.openai.count(1)
        try:
            self._meet(reply, body)
        except (_Gone, ConnectionError):
            self.openai.left()
            self.close_connection = True
        finally:
            self.openai.count(-1)

    def _meet(self, reply: Reply, body: dict[str, Any]) -> None:
        if reply.hang_up:
            self.close_connection = True
            return
        self._pause(reply.silent_s)
        if reply.status != 200 or reply.body is not None:
            said = {"error": {"message": f"scripted {reply.status}", "type": "x", "param": None, "code": None}}
            self._json(reply.status, said if reply.body is None else reply.body, reply.headers)
        elif body["model"] != self.openai.model:
            self._json(404, {"error": {"message": f"no model {body['model']}", "code": "model_not_found"}})
        elif self.path == "/v1/embeddings":
            vector = [float(len(body["input"])), 0.0, 4.0]
            self._json(200, {"data": [{"index": 0, "embedding": vector}], "usage": {"prompt_tokens": 2}})
        else:
            self._stream(reply, body)

    def _stream(self, reply: Reply, body: dict[str, Any]) -> None:
        is_chat = self.path == "/v1/chat/completions"
        words = body["messages"][-1]["content"] if is_chat else body["prompt"]
        pieces: Any = reply.deltas if reply.deltas is not None else [{"content": letter} for letter in words[::-1]]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        for number, piece in enumerate(pieces):
            if number == reply.cut_after:
                return
            self._pause(reply.piece_s)
            choice: dict[str, Any] = {"index": 0, "finish_reason": None}
            self._event({"choices": [choice | ({"delta": piece} if is_chat else {"text": piece["content"]})]})
        if reply.cut_after is not None and reply.cut_after >= len(pieces):
            return
        if reply.error is not None:
            self._event({"error": reply.error})
            return
        end: dict[str, Any] = {"index": 0, "finish_reason": reply.finish}
        end["delta" if is_chat else "text"] = {} if is_chat else ""
        self._event({"choices": [end]})
        if reply.usage is not None:
            self._event({"choices": [], "usage": reply.usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, told: dict[str, Any]) -> None:
        head = {"id": "x", "object": "chunk", "created": 0, "model": f"{self.openai.model}-2026"}
        self.wfile.write(b": keep-alive\n\ndata: " + json.dumps(head | told).encode() + b"\n\n")
        self.wfile.flush()

    def _pause(self, seconds: float) -> None:
        """Wait, unless the reader leaves."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.connection], [], [], left)[0] and not self.connection.recv(1):
                raise _Gone

    def _json(self, status: int, told: Any, headers: Mapping[str, str] | None = None) -> None:
        data = told.encode() if isinstance(told, str) else json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _is_stranger(self) -> bool:
        key = self.openai.key
        if not key or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self._json(
            401, {"error": {"message": f"wrong key {self.headers.get('Authorization')}", "code": "invalid_api_key"}}
        )
        return True
