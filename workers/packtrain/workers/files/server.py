"""The file server of a node: its catalog's model files for other nodes of the fleet, over HTTP.

    HEAD /models/<model>/<n>   size, hash and number of parts of part n of a model, counted from 0; one that has a
                               projector says so, and gives it under the number behind the last part
    GET  /models/<model>/<n>   the same with its bytes, or those that `Range` names, if the hash is that of `If-Match`
    GET  /link/<bytes>         so many random bytes, LINK_BYTES at most: for whoever measures the way here

A model file is named by the id that the catalog gave it, so no URL can lead elsewhere. Every request needs a token, see
`tokens`. The hash stands in `ETag`: who goes on with a file tomorrow notices that it is another one.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socket import AF_INET6, socket
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from redis.exceptions import RedisError

from packtrain.broker.errors import SetupError
from packtrain.broker.ids import ModelId
from packtrain.workers.files.bucket import TokenBucket
from packtrain.workers.files.hashing import Hashes, StillHashing
from packtrain.workers.files.ranges import RangeUnsatisfiable, byte_range
from packtrain.workers.files.secret import FleetSecret
from packtrain.workers.files.tokens import refusal

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
#: A peer that neither sends nor takes anything for so long is left, seconds.
SILENT_S = 30.0
#: A request that waits for a hash is answered by then, seconds: the other end sees that we live.
HASH_WAIT_S = 5.0
#: Bytes that go out between two looks at the limit.
PIECE_BYTES = 256 * 1024
#: Of one look at a link: 67 ms at 1 Gbit/s.
LINK_BYTES = 8 * 1024 * 1024

#: Refused requests are logged this often at most, seconds.
REFUSALS_NOTED_S = 10.0

PARTS_HEADER, PROJECTOR_HEADER, HASHED_HEADER = "Packtrain-Parts", "Packtrain-Projector", "Packtrain-Hashed"
_PATH = re.compile(r"/models/([a-z0-9][a-z0-9._-]{0,79})/(\d{1,4})", re.ASCII)
_LINK_PATH = re.compile(r"/link/(\d{1,8})", re.ASCII)
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class FileServer:
    """Serves from `start` to `close`; until then connections wait.

    Args:
        host, port: Where to listen; port 0: a free one.
        node: Whose files these are.
        parts: The files of a model that the catalog offers, None for others. Called from threads.
        projector: What a model of these has beside them.
        secret: What tokens are signed with.
        clock_s: The broker's.
        rate: Bytes per second that all requests may take together; None: no limit.

    Raises:
        SetupError: The address cannot be used.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        node: str,
        parts: Callable[[ModelId], Sequence[Path] | None],
        projector: Callable[[ModelId], Path | None] = lambda _: None,
        secret: FleetSecret,
        clock_s: Callable[[], float],
        hashes: Path,
        rate: int | None = None,
    ) -> None:
        self.node = node
        self.parts = parts
        self.projector = projector
        self.secret = secret
        self.clock_s = clock_s
        self.hashes = Hashes(hashes)
        # Half a second's worth at once, so that a limit is kept from the start.
        self._bucket = TokenBucket(rate, rate / 2, time.monotonic(), rate / 2) if rate else None
        self._bucket_lock = threading.Lock()
        self.piece_bytes = min(PIECE_BYTES, max(4096, rate // 4)) if rate else PIECE_BYTES
        self._closing = threading.Event()
        self._noted_at = float("-inf")
        try:
            self._server = _Server(host, port, self)
        except OSError as error:
            raise SetupError(
                f"cannot serve model files at {host}:{port} ({error.strerror or error}); "
                "give another --files-address (PACKTRAIN_FILES_ADDRESS)"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="files", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and cut what is under way: who fetches goes on when we are back."""
        self._closing.set()
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        self.hashes.close()

    def throttle(self, num_bytes: int) -> bool:
        """Wait until so many bytes may go out. False: we close."""
        if self._bucket is None:
            return not self._closing.is_set()
        with self._bucket_lock:
            wait_s = self._bucket.book(num_bytes, time.monotonic())
        return not self._closing.wait(wait_s)

    def note_refusal(self, what: str) -> None:
        """Log one that was sent away; of many only some, or whoever knocks could fill the disk."""
        now = time.monotonic()
        level = logging.WARNING if now - self._noted_at >= REFUSALS_NOTED_S else logging.DEBUG
        if level == logging.WARNING:
            self._noted_at = now
        logger.log(level, "Refused %s", what, extra={"event": "files.refused"})


class _Server(ThreadingMixIn, TCPServer):
    # Not http.server's: that one asks the name service for our own name, which may take seconds.
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, host: str, port: int, files: FileServer) -> None:
        if ":" in host:
            self.address_family = AF_INET6
        self.files = files
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)

    def process_request(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        assert isinstance(request, socket)
        with suppress(OSError):
            request.setblocking(False)
            request.send(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        logger.debug("A reader of model files at %s has gone", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "packtrain", ""
    timeout = SILENT_S
    server: _Server

    def do_HEAD(self) -> None:
        self._answer(with_bytes=False)

    def do_GET(self) -> None:
        self._answer(with_bytes=True)

    def _answer(self, *, with_bytes: bool) -> None:
        self.close_connection = True  # a place is for a transfer, not for who may want one
        files = self.server.files
        match, link = _PATH.fullmatch(self.path), _LINK_PATH.fullmatch(self.path)
        if not match and not link:
            self._refuse(HTTPStatus.NOT_FOUND, "paths are /models/<model>/<n> and /link/<bytes>")
            return
        try:
            why = self._why_closed()
        except RedisError:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the broker is away, so no token can be checked")
            return
        if why:
            files.note_refusal(f"{self.path} to {self.client_address[0]}: {why}")
            self._refuse(HTTPStatus.FORBIDDEN, why)
            return
        if not match:
            self._send_anything(min(int(link[1]), LINK_BYTES) if link and with_bytes else 0)
            return
        model, number = match[1], int(match[2])
        parts = files.parts(ModelId(model))
        projector = files.projector(ModelId(model)) if parts else None
        served = [*(parts or ()), *([projector] if projector else ())]
        if parts is None or number >= len(served):
            self._refuse(HTTPStatus.NOT_FOUND, f"{files.node} has no part {number} of {model!r}")
            return
        try:
            self._send(served[number], len(parts), has_projector=projector is not None, with_bytes=with_bytes)
        except StillHashing as still:
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE, str(still), **{"Retry-After": "1", HASHED_HEADER: str(still.read)}
            )
        except FileNotFoundError:
            self._refuse(HTTPStatus.NOT_FOUND, f"{files.node} has lost part {number} of {model!r}")

    def _why_closed(self) -> str:
        files, header = self.server.files, self.headers.get("Authorization", "")
        why = refusal(files.secret.known(), files.node, self.path, header, files.clock_s())
        if why and files.secret.read_again():
            why = refusal(files.secret.known(), files.node, self.path, header, files.clock_s())
        return why

    def _send(self, path: Path, num_parts: int, *, has_projector: bool, with_bytes: bool) -> None:
        files = self.server.files
        etag = f'"{files.hashes.sha256(path, wait_s=HASH_WAIT_S)}"'
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if self.headers.get("If-Match", etag) != etag:
                self._refuse(HTTPStatus.PRECONDITION_FAILED, "the file is another one now")
                return
            try:
                part = byte_range(self.headers.get("Range"), size) if with_bytes else None
            except RangeUnsatisfiable:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "", **{"Content-Range": f"bytes */{size}"})
                return
            self.send_response(HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT)
            wanted = range(size) if part is None else part
            if part is not None:
                self.send_header("Content-Range", f"bytes {part.start}-{part.stop - 1}/{size}")
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(wanted)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", etag)
            self.send_header(PARTS_HEADER, str(num_parts))
            if has_projector:  # not one of the parts: nodes that do not know of projectors fetch the model alone
                self.send_header(PROJECTOR_HEADER, "1")
            self.end_headers()
            if with_bytes:
                logger.info(
                    "Sending %s from byte %d to %s", self.path, wanted.start, self.client_address[0],
                    extra={"event": "files.sending"},
                )  # fmt: skip
                for start in range(wanted.start, wanted.stop, files.piece_bytes):
                    count = min(files.piece_bytes, wanted.stop - start)
                    if not files.throttle(count) or self.connection.sendfile(file, start, count) != count:
                        return  # we close, or the file has shrunk: the reader sees fewer bytes than were promised

    def _send_anything(self, size: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size))
        self.end_headers()
        piece = os.urandom(PIECE_BYTES)  # what cannot be packed on its way
        for start in range(0, size, PIECE_BYTES):
            self.wfile.write(piece[: size - start])

    def _refuse(self, status: HTTPStatus, why: str, **headers: str) -> None:
        body = f"{why}\n".encode() if why and self.command != "HEAD" else b""
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("%s: " + format, self.client_address[0], *args)
