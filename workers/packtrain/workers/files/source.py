"""Another node as a source of model files: asked over HTTP, wherever it is by now.

Its address is looked up for every request, for a node that was started again may have another one.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from packtrain.broker.beats import NodeBeat
from packtrain.broker.errors import ModelFetchFailed
from packtrain.broker.ids import ModelId
from packtrain.workers.files.secret import FleetSecret
from packtrain.workers.files.server import HASHED_HEADER, PARTS_HEADER, PROJECTOR_HEADER
from packtrain.workers.files.tokens import sign

#: Of connecting, and of every read. Longer than the source takes to say that it still hashes.
TIMEOUT_S = 10.0
MAX_PARTS = 1000


class SourceAway(Exception):
    """No answer this time; the next may be better.

    Args:
        hashed: Bytes that the source has hashed, if it said that it lives and does so.
    """

    def __init__(self, reason: str, hashed: int = 0) -> None:
        super().__init__(reason)
        self.hashed = hashed


class FileChanged(Exception):
    """The source has another file under this name than when it was asked first."""


@dataclass(frozen=True, slots=True)
class RemotePart:
    """One file of a model, as its source describes it."""

    size: int
    sha256: str
    num_parts: int  # of the model
    has_projector: bool = False  # under the number behind the last part


class NodeSource:
    """One node. Belongs to one thread at a time.

    Args:
        name: Its id.
        find: Its last beat; may raise `RedisError`.
        loopback: Of this node, as in its beats.
        clock_s: The broker's.
    """

    def __init__(
        self,
        name: str,
        find: Callable[[], NodeBeat | None],
        *,
        secret: FleetSecret,
        loopback: str,
        clock_s: Callable[[], float],
    ) -> None:
        self.name = name
        self._find = find
        self._secret = secret
        self._loopback = loopback
        self._clock_s = clock_s

    def look(self, model: ModelId, number: int) -> RemotePart:
        """What part `number` of a model is.

        Raises:
            SourceAway: Ask again later.
            ModelFetchFailed: It is no use.
        """
        with self._ask("HEAD", f"/models/{model}/{number}", {}) as reply:
            try:
                size, num_parts = int(reply.headers["Content-Length"]), int(reply.headers[PARTS_HEADER])
                sha256 = str(reply.headers["ETag"]).strip('"')
                is_sane = size >= 0 and 1 <= num_parts <= MAX_PARTS and len(bytes.fromhex(sha256)) == 32
            except (KeyError, TypeError, ValueError):
                is_sane = False
            if not is_sane:
                raise ModelFetchFailed(f"{self.name} describes {model!r} oddly; run the same version on both nodes")
            return RemotePart(size, sha256, num_parts, reply.headers.get(PROJECTOR_HEADER) == "1")

    @contextmanager
    def read(self, model: ModelId, number: int, start: int, part: RemotePart) -> Iterator[http.client.HTTPResponse]:
        """The bytes of a part from `start` on.

        Raises:
            SourceAway, ModelFetchFailed: As of `look`.
            FileChanged: It is not the file that was described.
        """
        headers = {"Range": f"bytes={start}-", "If-Match": f'"{part.sha256}"'}
        with self._ask("GET", f"/models/{model}/{number}", headers) as reply:
            if reply.headers.get("Content-Range") != f"bytes {start}-{part.size - 1}/{part.size}":
                raise SourceAway(f"{self.name} does not send the bytes that it was asked for")
            yield reply

    @contextmanager
    def _ask(self, method: str, path: str, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        try:
            with self._reply(connection, method, path, headers) as reply:
                if reply.status != HTTPStatus.FORBIDDEN or not self._secret.read_again():
                    self._check(reply, path)
                    yield reply
                    return
            connection.close()
            with self._reply(connection, method, path, headers) as reply:
                self._check(reply, path)
                yield reply
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise SourceAway(f"{self.name} does not answer ({reason})") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        try:
            beat = self._find()
        except RedisError as error:
            raise SourceAway("the broker is away") from error
        if beat is None:
            raise SourceAway(f"{self.name} is gone")
        if not beat.files_url:
            raise ModelFetchFailed(f"{self.name} serves no model files; give it an address with --files-address")
        if not beat.serves_files_to(self._loopback):
            raise ModelFetchFailed(
                f"{self.name} serves its model files on its own machine only ({beat.files_url}); "
                "start it with --files-address and an address that this node reaches"
            )
        where = urlsplit(beat.files_url)
        return http.client.HTTPConnection(where.hostname or "", where.port or 80, timeout=TIMEOUT_S)

    def _reply(
        self, connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        try:
            token = sign(self._secret.known(), self.name, path, self._clock_s())
        except RedisError as error:
            raise SourceAway("the broker is away") from error
        connection.request(method, path, headers={"Authorization": token, **headers})
        return connection.getresponse()

    def _check(self, reply: http.client.HTTPResponse, path: str) -> None:
        match reply.status:
            case HTTPStatus.OK | HTTPStatus.PARTIAL_CONTENT:
                return
            case HTTPStatus.SERVICE_UNAVAILABLE:
                hashed = reply.headers.get(HASHED_HEADER, "")
                if hashed.isdigit():
                    raise SourceAway(f"{self.name} is hashing its file", int(hashed))
                raise SourceAway(f"{self.name} is busy")
            case HTTPStatus.NOT_FOUND:
                raise ModelFetchFailed(
                    f"{self.name} has no file for {path} any more; put it back, or load the model where its file is"
                )
            case HTTPStatus.FORBIDDEN:
                raise ModelFetchFailed(
                    f"{self.name} refuses our token; see that both nodes use the same broker, and that its clock stands"
                )
            case HTTPStatus.PRECONDITION_FAILED:
                raise FileChanged
            case _:
                raise SourceAway(f"{self.name} answers {reply.status} {reply.reason}")
