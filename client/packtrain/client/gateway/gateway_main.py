"""Composition root of a gateway: a process before the fleet, run by `packtrain serve` and `packtrain up`."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import uvicorn
from redis.exceptions import RedisError

from packtrain.broker import lifeline, logs
from packtrain.broker.api_keys import ApiKeys
from packtrain.broker.connection import connect, masked, unavailable
from packtrain.broker.errors import PacktrainError, SetupError
from packtrain.broker.processes import Presence
from packtrain.broker.settings import load_settings
from packtrain.broker.tally_store import Counters
from packtrain.broker.tracing import start_tracing
from packtrain.client.aio import AsyncPacktrain
from packtrain.client.gateway.app import make_app
from packtrain.client.gateway.batches_keeper import kept_batches
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.image_urls import ImageUrls, place_of
from packtrain.client.gateway.keys import KeyAccess
from packtrain.client.gateway.page_watch import Watch
from packtrain.client.gateway.protocol import protocol
from packtrain.client.gateway.settings import GatewaySettings, check_reach, check_tls, load_gateway_settings

logger = logging.getLogger("packtrain.client.gateway.gateway_main")  # __name__ is __main__: only warnings are logged

#: Connections that wait to be accepted. Every SSE client of a burst is one.
BACKLOG = 2048
#: How long requests that did not end in time may take to cancel their jobs, seconds.
LEAVE_S = 5.0


def run(
    settings: GatewaySettings, url: str, *, files: Path, drain_s: float, ready: Callable[[str], None] = lambda _: None
) -> None:
    """Serve until SIGTERM, SIGINT, or the end of who started it. Main thread only.

    Requests under way may take `drain_s` to end. Batches in `files` run as long as somebody serves them.

    Args:
        url: Of the broker.
        files: Folder of uploads and batches.
        ready: Called with the URL of the gateway once it listens.

    Raises:
        SetupError: The port is taken, or other machines would reach it without API keys.
        BrokerUnavailable: The broker does not answer.
    """
    stop = _Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn stops at them, too, and then raises them again: nothing is left to do by then.
        signal.signal(number, stop)
    asyncio.run(_serve(settings, url, files, drain_s, ready, stop))


async def _serve(
    settings: GatewaySettings, url: str, files: Path, drain_s: float, ready: Callable[[str], None], stop: _Stop
) -> None:
    presence = Presence(url, "gateway", load_settings().node)
    redis = connect(url, name=f"gateway.{presence.beat.id}")
    keys = ApiKeys(redis)
    try:
        presence.begin()
        check_reach(settings.host, has_keys=bool(keys.all()))
    except RedisError as error:
        raise unavailable(url, error) from error
    check_tls(settings)
    listener = _listen(settings)
    tracing = start_tracing("packtrain-gateway")
    async with AsyncPacktrain(url) as fleet:
        door = Door(
            fleet, settings, KeyAccess(keys, settings, masked(url)), Counters(redis), files=files, watch=Watch(redis),
            tracing=tracing,
            images=ImageUrls([place_of(host) for host in settings.image_hosts]),
        )  # fmt: skip
        config = uvicorn.Config(
            make_app(door),
            log_config=None,  # ours: to stderr, from WARNING on
            access_log=False,
            timeout_graceful_shutdown=int(drain_s) or 1,
            server_header=False,
            http=protocol(settings.slow_s),
            ws="none",
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
        )
        server = _Server(config, door)
        loop = asyncio.get_running_loop()
        stop.now_ends(server)

        def at_end() -> None:
            loop.call_soon_threadsafe(stop)

        lifeline.watch(at_end)
        where = _url(listener, is_tls=settings.tls_cert is not None)
        logger.info("Serving at %s", where, extra={"event": "gateway.ready"})
        ready(where)
        with kept_batches(files, url), closing(door.readers):
            await server.serve([listener])
    presence.end()
    if tracing:
        tracing.close()
    redis.close()


class _Stop:
    """Ends the server, also when asked before it serves: uvicorn hears no signal until then."""

    def __init__(self) -> None:
        self._server: uvicorn.Server | None = None
        self._asked = False

    def __call__(self, *_: object) -> None:
        self._asked = True
        if self._server:
            self._server.should_exit = True

    def now_ends(self, server: uvicorn.Server) -> None:
        self._server = server
        server.should_exit = self._asked


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self._door = door

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._door.is_ending.set()
        await super().shutdown(sockets)
        # What was still under way has been cancelled and cancels its jobs, over the fleet's client, which closes next.
        if left := set(self.server_state.tasks):
            await asyncio.wait(left, timeout=LEAVE_S)


def _listen(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With TCP by name: asyncio switches Nagle's algorithm off only then, which costs each answer 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SetupError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); choose another with --port or "
            "PACKTRAIN_HTTP_PORT (0 takes a free one)"
        ) from error
    return listener


def _url(listener: socket.socket, *, is_tls: bool) -> str:
    host, port = listener.getsockname()[:2]
    return f"{'https' if is_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def main() -> int:
    """Entry point; the exit code."""
    try:
        settings = load_settings()
        logs.configure(settings.log_level)
        run(load_gateway_settings(), settings.broker_url(), files=settings.files_folder, drain_s=settings.drain_s)
    except PacktrainError as error:
        sys.stderr.write(f"packtrain serve: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
