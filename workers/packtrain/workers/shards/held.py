"""A shard of this node: its process, its end of the tunnel, and what is told of it.

Both take a second to begin, so a thread waits for them, and the agent's loop never does.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.errors import PacktrainError
from packtrain.broker.ids import InstanceId
from packtrain.broker.orders import NodeCommand
from packtrain.broker.states import InstanceState
from packtrain.workers.own_memory import own_memory
from packtrain.workers.shards.membership import Fate
from packtrain.workers.shards.process import ShardProcess
from packtrain.workers.shards.split import HOST
from packtrain.workers.supervision import why_ended
from packtrain.workers.tunnel.certificate import Identity
from packtrain.workers.tunnel.messages import TunnelConfig
from packtrain.workers.tunnel.process import TunnelProcess

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a shard of this node lives."""

    identity: Identity
    listen: str  # address for tunnels
    port: int  # for its tunnel; 0: a free one
    reached: str  # that others find it by
    cache: Path | None  # folder of its tensors; None: it keeps none
    n_threads: int


class HeldShard:
    """One shard, from its order to its end. Belongs to the agent's loop.

    Args:
        beat: Of it; state and more are kept here.
        command: Its order.
    """

    def __init__(self, beat: InstanceBeat, command: NodeCommand, place: Place) -> None:
        self.head = InstanceId(command.group)
        told = {"group": command.group, "layers": command.layers, "state": InstanceState.STARTING}
        self.beat = beat.model_copy(update=told)
        self.port, self.cache = place.port, place.cache
        self.leaves_since: float | None = None  # monotonic seconds; None: it stays
        self._command = command
        self._place = place
        self._lock = threading.Lock()  # guards what follows
        self._shard: ShardProcess | None = None
        self._way: TunnelProcess | None = None
        self._failure = ""
        self._is_closed = False
        threading.Thread(target=self._start, name=f"start {command.instance}", daemon=True).start()

    def begin_drain(self, reason: str) -> None:
        """Ask its head, by what is told of it, to do without it."""
        if self.leaves_since is None:
            self.leaves_since = time.monotonic()
            self.beat = self.beat.model_copy(update={"state": InstanceState.DRAINING, "reason": reason})
            logger.info("Draining %s: %s", self.beat.instance, reason, extra={"event": "shard.drain"})

    def look(self, fate: Fate) -> bool:
        """See how it is; True when there is news. Its beat is terminal once it is over, and its processes gone.

        Args:
            fate: What its head's state means for it.
        """
        with self._lock:
            shard, way, failure = self._shard, self._way, self._failure
        if shard and (code := shard.exit_code()) is not None:
            tail = shard.last_words().splitlines()
            return self._end(InstanceState.FAILED, str(why_ended(InstanceId(self.beat.instance), code, tail=tail)))
        if failure:
            return self._end(InstanceState.FAILED, failure)
        if way and (code := way.exit_code()) is not None:
            return self._end(InstanceState.FAILED, f"its end of the tunnel ended with code {code}: {way.last_words()}")
        if fate.shall == "end":
            return self._end(InstanceState.STOPPED, self.beat.reason if self.leaves_since else fate.reason)
        state = self.beat.state
        if way and state is InstanceState.STARTING:
            self._tell(InstanceState.LOADING, address=f"{_in_url(self._place.reached)}:{way.port}")
        elif fate.shall == "go" and state is InstanceState.LOADING:
            assert shard
            shard.keep_cache()
            self._tell(InstanceState.HOLDING)
        return state is not self.beat.state

    def note_memory(self) -> None:
        """What it holds now."""
        with self._lock:
            shard = self._shard
        if shard:
            with suppress(psutil.Error):  # it is gone, and will be seen to be
                self.beat = self.beat.model_copy(
                    update={"pid": shard.pid, "resident_bytes": own_memory(shard.pid).private}
                )

    def close(self) -> None:
        """End its processes; its memory is free then. What is only beginning ends as soon as it has begun."""
        with self._lock:
            self._is_closed = True
            shard, way = self._shard, self._way
        for process in (way, shard):
            if process:
                process.close()

    def _start(self) -> None:
        place, command = self._place, self._command
        try:
            shard = ShardProcess(
                cache_folder=place.cache, n_threads=place.n_threads, numerics=command.numerics,
                memory_bytes=command.reserved_bytes,
            )  # fmt: skip
            if not self._keeps(shard):
                return
            shard.wait()
            config = TunnelConfig(
                role="exit", host=place.listen, port=place.port, target_host=HOST, target_port=shard.port,
                peer=command.peer,
                certificate_file=str(place.identity.certificate_file), key_file=str(place.identity.key_file),
            )  # fmt: skip
            self._keeps(TunnelProcess(config))
        except (PacktrainError, OSError) as error:
            with self._lock:
                self._failure = str(error)

    def _keeps(self, process: ShardProcess | TunnelProcess) -> bool:
        """Keep a process; False, and it is ended, when nobody wants it any more."""
        with self._lock:
            if not self._is_closed:
                if isinstance(process, ShardProcess):
                    self._shard = process
                else:
                    self._way = process
                return True
        process.close()
        return False

    def _tell(self, state: InstanceState, **more: object) -> None:
        self.beat = self.beat.model_copy(update={"state": state, **more})
        logger.info("%s is %s", self.beat.instance, state, extra={"event": "shard.state", "state": state})

    def _end(self, state: InstanceState, reason: str) -> bool:
        self.close()
        self._tell(state, reason=reason, resident_bytes=0, address="")
        return True


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
