"""The pairing service's network side: plain HTTP that is open to the LAN, so everything about it is bounded."""

from __future__ import annotations

import json
import logging
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6, SHUT_RDWR
from typing import Any

from pydantic import ValidationError
from redis.exceptions import RedisError

from packtrain.client.joining.messages import MAX_BODY, Admitted, Confirm, Hello, Welcome
from packtrain.client.joining.service import Pairing, Refused

logger = logging.getLogger(__name__)

REQUEST_S = 5.0  # for a whole connection
AT_ONCE = 8


class PairingServer(ThreadingHTTPServer):
    """The network around it.

    Args:
        address: To listen on.
        port: 0: a free one.

    Raises:
        OSError: It cannot listen there.
    """

    daemon_threads = True

    def __init__(self, address: str, port: int, pairing: Pairing) -> None:
        self.address_family = AF_INET6 if ":" in address else AF_INET
        self.pairing = pairing
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        super().__init__((address, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand a connection to a thread of its own, or hang up when there are too many."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, then its slot is free."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, *_: Any) -> None:
        """A connection that broke off is no reason for a traceback on stderr."""
        logger.info("A connection broke off", exc_info=True, extra={"event": "join.broken"})


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_S  # of each read; the timer bounds them together
    server: PairingServer

    def setup(self) -> None:
        super().setup()
        self._timer = threading.Timer(REQUEST_S, self._hang_up)
        self._timer.daemon = True
        self._timer.start()

    def finish(self) -> None:
        self._timer.cancel()
        super().finish()

    def do_POST(self) -> None:
        try:
            self._answer(HTTPStatus.OK, self._decide(self._body()).model_dump_json())
        except Refused as refused:
            self._answer(refused.status, json.dumps({"error": str(refused)}))
        except ValidationError:
            self._answer(HTTPStatus.BAD_REQUEST, json.dumps({"error": "that is no request of Packtrain's"}))
        except RedisError as error:
            logger.warning("The broker is away: %s", error, extra={"event": "broker.away"})
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, json.dumps({"error": "the broker is away; try again"}))

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args, extra={"event": "join.request"})

    def _decide(self, body: bytes) -> Welcome | Admitted:
        match self.path:
            case "/hello":
                return self.server.pairing.hello(Hello.model_validate_json(body))
            case "/confirm":
                return self.server.pairing.confirm(Confirm.model_validate_json(body))
            case _:
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {MAX_BODY} bytes")
        return self.rfile.read(int(length))

    def _answer(self, status: HTTPStatus, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def _hang_up(self) -> None:
        with suppress(OSError):  # it has ended by itself
            self.connection.shutdown(SHUT_RDWR)
