"""Chaos: rounds of random faults on a fleet of several hosts under load, the same ones for the same seed.

A round begins with jobs in mid-generation. One or two faults of different kinds hit at random moments, more jobs are
submitted meanwhile, and each fault ends after a while: a cable is plugged in, a process started again, as its
supervisor would. Then all must be as if nothing had happened. Two faults a round at most, because a job may lose its
instance twice: the third time it is DEAD, and rightly so.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random

from redis.exceptions import RedisError

from packtrain.broker import keys
from packtrain.broker.states import InstanceState
from packtrain.client import Job, SetupError, TryLater
from tests.conftest import immortal_keys
from tests.support.fault_table import ROWS, Load, Row, answer, start_load, until_on_file, watch
from tests.support.fleets import eventually
from tests.support.host_fleet import HostFleet, Node
from tests.support.hosts import Host

#: From the last repair until every job has ended: leases and a node's beat lapse, models are loaded again, three jobs
#: of each slot are computed.
BOUND_S = 45.0
#: Jobs that are submitted during the faults of a round.
NUM_LATE = 3

Undo = Callable[[], object]


def nothing() -> None:
    """It mends itself."""


class Round:
    """One round; `run` it.

    Args:
        name: Unlike that of any other round on this fleet.
        longest_s: How long a fault lasts at most.
    """

    def __init__(self, fleet: HostFleet, name: str, random: Random, *, longest_s: float) -> None:
        self._fleet = fleet
        self._name = name
        self._random = random
        self._longest_s = longest_s
        ready = fleet.instances(state=InstanceState.READY)
        self._instance = random.choice(ready).pid if ready else 0
        self._node = fleet.nodes[random.choice(sorted(fleet.nodes))]
        kinds: dict[str, Callable[[], Undo]] = {
            "kill -9 of an instance": self._kill_instance,
            "instance frozen": self._freeze_instance,
            "kill -9 of an agent": self._kill_agent,
            "agent frozen": self._freeze_agent,
            "kill -9 of the coordinator": self._kill_coordinator,
            "coordinator frozen": self._freeze_coordinator,
            "kill -9 of the broker": self._kill_broker,
            "broker frozen": self._freeze_broker,
            "broker's memory full": self._fill_broker,
            "all connections cut": self._cut_connections,
            "node's cable cut": lambda: _cut(self._node.host),
            "client's cable cut": lambda: _cut(fleet.laptop),
            "broker's cable cut": lambda: _cut(fleet.head),
            "node hears nothing": lambda: _one_way(fleet.head, self._node.host),
            "node is not heard": lambda: _one_way(self._node.host, fleet.head),
            "node vanishes and returns": self._vanish,
        }
        self._kinds = kinds
        self.names = random.sample(sorted(kinds), random.choice((1, 2, 2)))

    def run(self) -> Row:
        """Inject, mend, and check. The row for the table, whose checks have passed."""
        load = start_load(self._fleet.client, self._fleet.redis, count=5, num_tokens=self._random.randint(60, 150))
        at = f"token {min(load.progress())} of {len(load.expected[0])}"
        late: list[Job] = []
        submitting = threading.Thread(
            target=lambda: late.extend(self._submit_late(number) for number in range(NUM_LATE)), daemon=True
        )
        undo: list[Undo] = []
        try:
            for name in self.names:
                time.sleep(self._random.uniform(0, 1.0))
                with suppress(RedisError):  # what another fault has taken away already
                    undo.append(self._kinds[name]())
                if not submitting.ident:
                    submitting.start()
            time.sleep(self._random.uniform(0.2, self._longest_s))
        finally:
            for mend in undo:
                mend()
        mended = time.monotonic()
        submitting.join(BOUND_S)
        assert not submitting.is_alive(), f"nobody would take a job {BOUND_S} s after {self}"
        load.wait(BOUND_S)
        # Sent again: a broker that is killed may take what it acknowledged a moment before.
        late = [self._submit_late(number) for number in range(NUM_LATE)]
        after = watch(self._fleet.redis, late, [answer(f"late {number} !long", 60) for number in range(NUM_LATE)])
        after.wait(max(5.0, mended + BOUND_S - time.monotonic()))
        return self._check(load, after, at, time.monotonic() - mended)

    def __str__(self) -> str:
        return f"{self._name} ({', '.join(self.names)})"

    def _submit_late(self, number: int) -> Job:
        """A job of somebody who does not give up, with a key that makes it one job however often it is sent."""
        prompt, key = f"late {number} !long", f"{self._name}, job {number}"
        while True:
            # A broker whose memory is full is the operator's business, SetupError; here one is about to see to it.
            with suppress(TryLater, SetupError):
                return self._fleet.client.submit("steady", prompt, max_tokens=60, idempotency_key=key)
            time.sleep(0.2)

    def _check(self, load: Load, after: Load, at: str, recovered_s: float) -> Row:
        lost, doubled = load.lost() + after.lost(), load.doubled() + after.doubled()
        row = Row(f"chaos {self}", at, recovered_s, BOUND_S, lost, doubled)
        ROWS.append(row)
        assert load.failures + after.failures == [], row
        assert (lost, doubled) == (0, 0), f"{row}, seen {load.seen} and {after.seen}"
        redis = self._fleet.redis
        eventually(lambda: not self._fleet.client.waiting() and not redis.zcard(keys.LEASES), f"an empty fleet {self}")
        assert immortal_keys(redis) <= keys.PERMANENT
        eventually(self._has_all_nodes, f"all nodes after {self}", BOUND_S)
        eventually(self._fleet.leader, f"a leader after {self}", BOUND_S)
        return row

    def _has_all_nodes(self) -> bool:
        # An agent that begins while the broker is away ends again, and its supervisor would start the next.
        for node in self._fleet.nodes.values():
            _start_again(node)
        return self._fleet.alive() == set(self._fleet.nodes)

    def _kill_instance(self) -> Undo:
        _signal(self._instance, signal.SIGKILL)
        return nothing

    def _freeze_instance(self) -> Undo:
        _signal(self._instance, signal.SIGSTOP)
        return lambda: _signal(self._instance, signal.SIGCONT)

    def _kill_agent(self) -> Undo:
        agent = self._node.agent
        assert agent is not None
        agent.kill()
        agent.wait()
        return lambda: _start_again(self._node)

    def _freeze_agent(self) -> Undo:
        agent = self._node.agent
        assert agent is not None
        agent.send_signal(signal.SIGSTOP)
        return lambda: agent.send_signal(signal.SIGCONT)

    def _kill_coordinator(self) -> Undo:
        leader = self._fleet.leader()
        if leader is None:
            return nothing
        leader.kill()
        leader.wait()
        self._fleet.coordinators.remove(leader)
        return self._fleet.start_coordinator

    def _freeze_coordinator(self) -> Undo:
        leader = self._fleet.leader()
        if leader is None:
            return nothing
        leader.send_signal(signal.SIGSTOP)
        return lambda: leader.send_signal(signal.SIGCONT)

    def _kill_broker(self) -> Undo:
        broker = self._fleet.broker
        assert broker is not None
        until_on_file(self._fleet.redis)
        broker.kill()
        broker.wait()
        return self._fleet.start_broker

    def _freeze_broker(self) -> Undo:
        broker = self._fleet.broker
        assert broker is not None
        broker.send_signal(signal.SIGSTOP)
        return lambda: broker.send_signal(signal.SIGCONT)

    def _fill_broker(self) -> Undo:
        self._fleet.redis.config_set("maxmemory", "1mb")
        return self._empty_broker

    def _empty_broker(self) -> None:
        with suppress(RedisError):  # one that was started again has its own setting
            self._fleet.redis.config_set("maxmemory", "512mb")

    def _cut_connections(self) -> Undo:
        self._fleet.redis.client_kill_filter(_type="normal", skipme=True)
        return nothing

    def _vanish(self) -> Undo:
        self._node.host.vanish()

        def come_back() -> None:
            self._node.host.heal()
            _start_again(self._node)

        return come_back


def _cut(host: Host) -> Undo:
    host.cut()
    return host.heal


def _one_way(speaker: Host, listener: Host) -> Undo:
    speaker.mute(listener)
    return lambda: speaker.unmute(listener)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        if pid:
            os.kill(pid, number)


def _start_again(node: Node) -> None:
    assert node.agent is not None
    if node.agent.poll() is not None:
        node.start()
