"""The wire: one OpenAI-compatible server, asked over HTTP. What comes back is text for `answers.py`, or a refusal.

Nothing of it is unbounded: a server may send much, or nothing for long, or never end a line or its answer. Redirects
are not followed, for the key would go along.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import httpx2

from packtrain.broker import hops
from packtrain.workers.remote.answers import BrokenAnswer, TooLarge
from packtrain.workers.remote.failures import Refusal, redacted, refusal
from packtrain.workers.remote.options import RemoteOptions

CONNECT_S, WRITE_S, CHECK_S = 10.0, 60.0, 10.0
#: Bytes of a refusal.
MAX_REFUSAL_BYTES = 64 * 1024
#: A stream's event; a megabyte is a thousand times what servers send.
MAX_EVENT_BYTES = 4 * 1024 * 1024
#: The last event of a stream.
DONE: Final = "[DONE]"


class Refused(Exception):
    """What came is no answer, or none came."""

    def __init__(self, why: Refusal) -> None:
        super().__init__(why.said)
        self.why = why


class RemoteApi:
    """One server. All is used on one asyncio loop, inside `async with`.

    Args:
        key: Empty: none is sent.
        transport: Instead of the network, for tests.
    """

    def __init__(self, options: RemoteOptions, key: str, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._options = options
        self._key = key
        self._transport = transport
        self._client: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        headers = {"User-Agent": "packtrain", "Accept": "text/event-stream, application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(self._options.timeout_s, connect=CONNECT_S, write=WRITE_S, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=self._options.concurrency),
            transport=self._transport,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._client is not None
        await self._client.aclose()

    async def events(self, path: str, body: Mapping[str, Any], trail: tuple[str, ...]) -> AsyncGenerator[str]:
        """The data of the answer's events, `DONE` among them; of an answer that is no stream, the whole of it.

        Leaving it closes the connection.

        Raises:
            Refused: There is no answer, before the first event.
            BrokenAnswer: It breaks off, after it.
            TooLarge
        """
        assert self._client is not None
        most, size = self._options.max_answer_mib * 1024 * 1024, 0
        headers = {hops.HEADER: ", ".join(trail)}
        has_begun = False
        try:
            async with self._client.stream("POST", self._options.url + path, json=body, headers=headers) as response:
                if response.status_code != 200:
                    raise Refused(await self._why(response))
                if _media_type(response) == "application/json":
                    yield await _body(response, most)
                    return
                # What comes over the wire counts, comments too; and the events, which may have come compressed.
                assert isinstance(response.stream, httpx2.AsyncByteStream)
                response.stream = _Bounded(response.stream, most)
                async for event in httpx2.EventSource(response, MAX_EVENT_BYTES):
                    has_begun = True
                    if (size := size + len(event.data)) > most:
                        raise _too_large(most)
                    if event.data:
                        yield event.data
                    if event.data.strip() == DONE:
                        return
        except httpx2.TransportError as problem:
            said = redacted(_named(problem), self._key)
            raise (BrokenAnswer(said) if has_begun else Refused(Refusal(said))) from None

    async def refused(self) -> Refusal | None:
        """How the server refuses to list its models; None: it does not."""
        assert self._client is not None
        try:
            async with asyncio.timeout(CHECK_S), self._client.stream("GET", self._options.url + "/models") as response:
                return None if response.status_code == 200 else await self._why(response)
        except TimeoutError:
            return Refusal(f"it is silent for {CHECK_S:.0f} s")
        except httpx2.HTTPError as problem:
            return Refusal(redacted(_named(problem), self._key))

    async def _why(self, response: httpx2.Response) -> Refusal:
        status = response.status_code
        if response.is_redirect:
            where = str(response.headers.get("location", "nowhere"))[:200]
            return Refusal(redacted(f"it sends us on to {where}, and no key goes along", self._key), status)
        try:
            body = (await _body(response, MAX_REFUSAL_BYTES)).encode()
        except (httpx2.HTTPError, BrokenAnswer):
            body = b""
        return refusal(status, response.headers, body, now=datetime.now(UTC), secret=self._key)


class _Bounded(httpx2.AsyncByteStream):
    """A stream of so many bytes at most."""

    def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
        self._stream = stream
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            if (size := size + len(part)) > self._most:
                raise _too_large(self._most)
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"its answer is larger than {most // 1024} KiB")


def _named(problem: Exception) -> str:
    """What happened on the wire, for people."""
    kinds: dict[type[Exception], str] = {
        httpx2.ConnectTimeout: "it cannot be reached in time",
        httpx2.ReadTimeout: "it is silent for longer than timeout_s allows",
        httpx2.RemoteProtocolError: "the connection broke",
        httpx2.ReadError: "the connection broke",
        httpx2.ConnectError: "no connection",
    }
    kind, text = kinds.get(type(problem), type(problem).__name__), str(problem)
    return f"{kind} ({text[:200]})" if text else kind


def _media_type(response: httpx2.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


async def _body(response: httpx2.Response, most: int) -> str:
    """A whole body, which is no larger than we allow.

    Raises:
        TooLarge
    """
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > most:
            raise _too_large(most)
    return b"".join(parts).decode("utf-8", "replace")
