"""Composition root of the coordinator process: real parts, a clock, signals. Run by `packtrain coordinator`."""

from __future__ import annotations

import logging
import signal
import sys
import time
from queue import Empty, SimpleQueue

from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from packtrain.broker import keys, lifeline, logs
from packtrain.broker.celery_app import Doorbell, make_app
from packtrain.broker.connection import connect, masked
from packtrain.broker.coordinator import Coordinator
from packtrain.broker.deeds_store import RedisDeeds
from packtrain.broker.election import Election
from packtrain.broker.errors import PacktrainError
from packtrain.broker.history_store import Recorder
from packtrain.broker.ids import Route
from packtrain.broker.journal import RedisJournal
from packtrain.broker.processes import Presence, new_process_id
from packtrain.broker.reap_traces import jobs_with_traces
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.server import await_broker
from packtrain.broker.settings import Settings, load_settings
from packtrain.broker.tracing import start_tracing

logger = logging.getLogger(__name__)

TICK_S = 1.0


def run(settings: Settings, stop: SimpleQueue[None]) -> None:
    """Stand for election and lead when elected, until something is in `stop`. Survives a broker that comes and goes."""
    url = settings.broker_url()
    await_broker(url)
    me = new_process_id(settings.node)
    presence = Presence(url, "coordinator", settings.node, me)
    presence.begin()
    # One try per command: the loop itself is the retry, and a leader must not act on a decision seconds old.
    redis = connect(url, name=f"coordinator.{settings.node}", retries=0)
    tracing = start_tracing("packtrain-coordinator")
    jobs = jobs_with_traces(redis, tracing)
    bells = Doorbell(make_app(url, name=f"coordinator.{settings.node}"))
    election = Election(redis, me)
    coordinator = Coordinator(
        jobs,
        RedisRegistry(redis),
        bells,
        lambda route: _queue_length(redis, route),
        offer_wait_ms=int(settings.offer_wait_s * 1000),
        max_wait_ms=int(settings.max_wait_s * 1000),
        min_residency_ms=int(settings.min_residency_s * 1000),
        journal=RedisJournal(redis),
        deeds=RedisDeeds(redis),
    )
    logger.info("Coordinator %s stands for election at %s", me, masked(url), extra={"event": "coordinator.start"})

    recorder = Recorder(redis)
    grace = _ReapGrace(settings.lease_ms / 1000)
    led: int | None = None
    while not _wait(stop, TICK_S):
        try:
            grace.saw_server(str(redis.info("server")["run_id"]), time.monotonic())
            term = election.lead()
            if term and term != led:
                logger.info("Leading, term %d", term, extra={"event": "coordinator.elected", "term": term})
            led = term
            if term:
                coordinator.tick(term, reap=grace.is_over(time.monotonic()))
                recorder.tick()
        except (RedisError, OperationalError) as error:
            logger.warning("Broker is away: %s", error, extra={"event": "broker.away"})
            grace.lost_server()
    if tracing:
        tracing.close()
    try:
        election.resign()
    except RedisError as error:
        logger.info("Leadership is left to lapse: %s", error, extra={"event": "coordinator.stop"})
    presence.end()


def _wait(stop: SimpleQueue[None], seconds: float) -> bool:
    """True when it is time to stop."""
    try:
        stop.get(timeout=seconds)
    except Empty:
        return False
    return True


class _ReapGrace:
    """After Redis was away nobody could renew, so for one lease nobody is reaped for it."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._run_id: str | None = None
        self._until = 0.0

    def saw_server(self, run_id: str, now: float) -> None:
        if self._run_id is not None and run_id != self._run_id:
            self._until = now + self._lease_s
        self._run_id = run_id

    def lost_server(self) -> None:
        self._run_id = ""

    def is_over(self, now: float) -> bool:
        return now >= self._until


def _queue_length(redis: Redis, route: Route) -> int:
    return int(redis.llen(keys.model_queue(route)))


def main() -> int:
    """Entry point; the exit code."""
    try:
        settings = load_settings()
        logs.configure(settings.log_level)
        # Not an Event: a signal handler that sets one may deadlock with the main thread that waits for it.
        stop: SimpleQueue[None] = SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.put(None))
        lifeline.watch(lambda: stop.put(None))
        run(settings, stop)
    except PacktrainError as error:
        sys.stderr.write(f"packtrain coordinator: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
