"""HTTP/1.1 as uvicorn speaks it, with a limit on how long a request may take to come in.

uvicorn waits for ever for the rest of a request, so a few thousand connections that send a byte a minute would take all
that a process may open. Here a request has some seconds to come, and a second more for each `BYTES_PER_S` of it that
came: a slow line may send much, and a connection that only pretends is closed. What is no HTTP, or too slow, is told so
in the shape of all other errors.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from packtrain.client.gateway.failures import json_response
from packtrain.client.openai import Fault

#: A modem does better.
BYTES_PER_S = 500


class PatientProtocol(H11Protocol):
    """One connection. Made by uvicorn."""

    grace_s = 20.0  # that a request has to come in, at least

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._began_s = 0.0
        self._came = 0  # bytes
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._expect()
        self._came += len(data)
        super().data_received(data)
        if self._timer and self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):  # all of it is there
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(Fault(400, "invalid_request_error", "invalid_http", f"this is no HTTP/1.1 request: {msg}"))

    def _expect(self) -> None:
        self._began_s, self._came = self.loop.time(), 0
        self._timer = self.loop.call_later(self.grace_s, self._look)

    def _look(self) -> None:
        left_s = self._began_s + self.grace_s + self._came / BYTES_PER_S - self.loop.time()
        if self.flow.read_paused:  # it is we who do not read
            left_s = max(left_s, 1.0)
        if left_s > 0:
            self._timer = self.loop.call_later(left_s, self._look)
            return
        self._timer = None
        message = f"the request did not come in within {self.grace_s:g} s and one more for each {BYTES_PER_S} bytes"
        self._refuse(Fault(408, "invalid_request_error", "request_too_slow", message, should_retry=False))

    def _refuse(self, fault: Fault) -> None:
        """Answer in place of the application, if it has not begun to, and close."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = json_response(fault.body(), fault.status, {**fault.headers(), "Connection": "close"})
            head = h11.Response(status_code=fault.status, headers=response.raw_headers)
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def protocol(grace_s: float) -> type[PatientProtocol]:
    """Connections whose requests have so long to come in."""
    return type("Protocol", (PatientProtocol,), {"grace_s": grace_s})
