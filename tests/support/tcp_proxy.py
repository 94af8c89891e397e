"""A TCP proxy on loopback that counts bytes, adds a round trip and can be cut: a link between machines, in small."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self


class TcpProxy:
    """Leads connections to a port of this machine.

    Args:
        target: That port.
        round_trip_s: Added to each exchange, half of it each way. Bytes on their way do not wait for each other.
    """

    def __init__(self, target: int, *, round_trip_s: float = 0.0) -> None:
        self._target = target
        self._delay_s = round_trip_s / 2
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.num_sent = 0  # bytes to the target
        self.num_received = 0
        self.seen = bytearray()  # the first megabyte, both ways
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def cut(self) -> None:
        """End all connections."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut, and take no more."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ends += [near, far]
            threading.Thread(target=self._lead, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._lead, args=(far, near, False), daemon=True).start()

    def _lead(self, source: socket.socket, target: socket.socket, is_out: bool) -> None:
        under_way: deque[tuple[float, bytes]] = deque()
        arrived = threading.Condition()

        def deliver() -> None:
            while True:
                with arrived:
                    arrived.wait_for(lambda: bool(under_way))
                    at, data = under_way.popleft()
                time.sleep(max(0.0, at - time.monotonic()))
                if not data:
                    with suppress(OSError):
                        target.shutdown(socket.SHUT_WR)
                    return
                try:
                    target.sendall(data)
                except OSError:
                    return

        threading.Thread(target=deliver, daemon=True).start()
        while True:
            try:
                data = source.recv(1 << 18)
            except OSError:
                data = b""
            if is_out:
                self.num_sent += len(data)
            else:
                self.num_received += len(data)
            if len(self.seen) < 2**20:
                self.seen += data
            with arrived:
                under_way.append((time.monotonic() + self._delay_s, data))
                arrived.notify()
            if not data:
                return
