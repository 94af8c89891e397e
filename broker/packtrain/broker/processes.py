"""Processes of a fleet, each saying what it speaks; and at its start, whether it may be among the others at all.

Those of 0.1 say nothing of the kind. Their agents tell a version in their beats, a leading coordinator is known by the
leader's key, and gateways by the names of their connections, which from 0.2 on hold the id of their process.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Sequence
from typing import Any, cast

from pydantic import ValidationError
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from packtrain.broker import keys
from packtrain.broker.compatibility import Kind, ProcessBeat, clash
from packtrain.broker.connection import connect, masked
from packtrain.broker.errors import SetupError
from packtrain.broker.ids import NodeId
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.versions import MESSAGES, Speaks, installed_version

logger = logging.getLogger(__name__)

#: Two signs may be lost before others think that a process is gone.
SIGN_S = keys.PROCESS_TTL_MS / 1000 / 3
#: What 0.1 calls itself where it tells no version.
BEFORE_0_2 = "0.1.0"


def new_process_id(node: str) -> str:
    """Unique, and tells whose it is."""
    return f"{node}-{os.getpid()}-{secrets.token_hex(3)}"


def speaks() -> Speaks:
    """What is installed here speaks."""
    return Speaks(version=installed_version(), schema_version=keys.SCHEMA_VERSION, messages=dict(MESSAGES))


class Processes:
    """Those of one fleet. Every call may raise `redis.RedisError`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def put(self, beat: ProcessBeat) -> None:
        """A sign of life."""
        seconds, micros = self._redis.time()
        now_ms = seconds * 1000 + micros // 1000
        pipe = self._redis.pipeline(transaction=True)
        pipe.set(keys.process(beat.id), beat.model_dump_json(), px=keys.PROCESS_TTL_MS)
        pipe.zadd(keys.PROCESSES, {beat.id: now_ms})
        pipe.zremrangebyscore(keys.PROCESSES, 0, now_ms - keys.PROCESSES_TTL_MS)
        pipe.pexpire(keys.PROCESSES, keys.PROCESSES_TTL_MS)
        pipe.execute()

    def drop(self, process_id: str) -> None:
        """One ends."""
        self._redis.delete(keys.process(process_id))
        self._redis.zrem(keys.PROCESSES, process_id)

    def told(self) -> list[ProcessBeat]:
        """Those that say what they speak."""
        ids = cast(list[str], self._redis.zrange(keys.PROCESSES, 0, -1))
        rows = cast("list[str | None]", self._redis.mget([keys.process(each) for each in ids])) if ids else []
        return [beat for each, row in zip(ids, rows, strict=True) if row and (beat := _read(each, row))]

    def all(self) -> list[ProcessBeat]:
        """Those that live, and those of 0.1 as far as they show."""
        return [*self.seen_by_keys(), *self._by_connection()]

    def seen_by_keys(self) -> list[ProcessBeat]:
        """The same but for gateways of 0.1, which show by the broker's connections only: few users may list those."""
        told = self.told()
        return [*told, *self._silent(told)]

    def schema(self) -> str:
        """Of the data in the broker; empty: there is none yet."""
        return cast("str | None", self._redis.get(keys.SCHEMA)) or ""

    def _silent(self, told: Sequence[ProcessBeat]) -> list[ProcessBeat]:
        ids = {beat.id for beat in told}
        registry = RedisRegistry(self._redis)
        with_agent = {beat.node for beat in told if beat.kind == "agent"}
        old = {beat.node: beat for beat in registry.nodes() if beat.node not in with_agent}
        found = [_before("agent", node, node, beat.version, pid=beat.pid) for node, beat in old.items()]
        found += [
            _before("instance", beat.instance, beat.node, old[NodeId(beat.node)].version, pid=beat.pid)
            for beat in registry.instances()
            if beat.node in old and beat.instance not in ids and beat.pid and not beat.state.is_terminal
        ]
        leader = cast("str | None", self._redis.get(keys.LEADER))
        if leader and leader not in ids:
            found.append(_before("coordinator", leader, leader.rsplit("-", 2)[0]))
        return found

    def _by_connection(self) -> list[ProcessBeat]:
        try:
            clients = cast("list[dict[str, Any]]", self._redis.client_list())
        except ResponseError:  # this user may not list them
            return []
        hosts = sorted({client["addr"].rpartition(":")[0] for client in clients if client.get("name") == "gateway"})
        return [_before("gateway", f"gateway at {host}", host) for host in hosts]


def _before(kind: Kind, name: str, node: str, version: str = "", *, pid: int = 0) -> ProcessBeat:
    return ProcessBeat(kind=kind, id=name, node=node, pid=pid, version=version or BEFORE_0_2)


def _read(process_id: str, row: str) -> ProcessBeat | None:
    try:
        return ProcessBeat.model_validate_json(row)
    except ValidationError as error:  # of a version far ahead: its schema differs, or it would be readable
        logger.warning("Cannot read what %s says it speaks: %s", process_id, error, extra={"event": "process.odd"})
        return None


class Presence:
    """One process among the others: refused where it cannot be, announced while it lives.

    Args:
        url: Of the broker, which answers.
        process_id: None: a new one.
    """

    def __init__(self, url: str, kind: Kind, node: str, process_id: str | None = None) -> None:
        self._url = url
        self.beat = ProcessBeat(
            kind=kind, id=process_id or new_process_id(node), node=node, pid=os.getpid(), **speaks().model_dump()
        )
        self._redis = connect(url, name=f"presence.{self.beat.id}", retries=0)
        self._processes = Processes(self._redis)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="presence", daemon=True)

    def begin(self) -> None:
        """Look at who is there, then tell of this process until `end`. While the broker is away nobody can be asked.

        Raises:
            SetupError: One is there with which this one cannot share a fleet. Nothing was written.
        """
        try:
            there = self._processes.seen_by_keys()
        except RedisError as error:
            logger.warning("Cannot ask who is there: %s", error, extra={"event": "broker.away"})
            there = []
        for other in there:
            if other.id != self.beat.id and (reason := clash(self.beat, other)):
                raise SetupError(
                    f"this {self.beat.kind} of Packtrain {self.beat.version} cannot join the fleet at "
                    f"{masked(self._url)}: of its {other.kind} {other.id} ({other.version}), {reason}; "
                    "`packtrain upgrade-check` says what to do"
                )
        self._thread.start()

    def end(self) -> None:
        """Say that it ends. Never raises."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(1.0)  # or its last sign might come after the end
        try:
            self._processes.drop(self.beat.id)
        except RedisError as error:
            logger.debug("The last sign of this process will lapse: %s", error, extra={"event": "process.lapses"})
        self._redis.close()

    def _tell(self) -> None:
        while not self._ending.is_set():
            try:
                self._processes.put(self.beat)
            except RedisError as error:
                logger.debug("Could not tell what this process speaks: %s", error, extra={"event": "process.untold"})
            self._ending.wait(SIGN_S)
