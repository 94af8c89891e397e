"""What it costs to unload an instance, in seconds: so that unlike choices can be compared.

Of an idle one it is the regret: the seconds that it takes to load again, times the chance that somebody will want it.
The chance halves with every ten minutes that it was not used, and is shared with other replicas of its model. Of one
that jobs still wait for, which only a model that waited too long may drive out, it is the part of its stay that the
load took: so those that have been there longest take their turn first. Its stay is counted from the first token that a
job has of it: if long prompts were thrown away before that, again and again, two models could take turns for ever.
"""

from __future__ import annotations

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.placement.snapshot import MIB

#: Without use for this long, an instance is half as likely to be wanted.
HALF_LIFE_MS = 600_000
#: What a load is taken to cost where none was measured: a process, and weights from a disk that reads 500 MB/s.
START_S, READ_BYTES_PER_S = 2.0, 500_000_000
#: What a fetch is taken to cost: Ethernet at 1 Gbit/s.
FETCH_BYTES_PER_S = 100_000_000
#: A measured residence of an idle instance is long enough when it is this many times its load.
RESIDENCY_PER_LOAD = 2


def load_s(instance: InstanceBeat) -> float:
    """Seconds from the command to READY, measured or guessed."""
    if instance.requested_ms and instance.ready_ms > instance.requested_ms:
        return (instance.ready_ms - instance.requested_ms) / 1000
    return guessed_load_s(held_bytes(instance))


def guessed_load_s(num_bytes: int) -> float:
    """Seconds of a load of this size."""
    return START_S + num_bytes / READ_BYTES_PER_S


def fetch_s(num_bytes: int) -> float:
    """Seconds of a fetch of this size."""
    return num_bytes / FETCH_BYTES_PER_S


def idle_ms(instance: InstanceBeat, now_ms: int) -> int:
    """Since it was last used, or came up."""
    return now_ms - max(instance.ready_ms, instance.last_used_ms)


def regret(instance: InstanceBeat, now_ms: int, num_replicas: int) -> float:
    """Expected seconds lost by unloading an idle instance."""
    chance: float = 0.5 ** (max(0, idle_ms(instance, now_ms)) / HALF_LIFE_MS)
    return load_s(instance) * chance / max(1, num_replicas)


def swap_cost(instance: InstanceBeat, now_ms: int) -> float:
    """Of a wanted one: its load by its stay so far."""
    return load_s(instance) / max(0.001, (now_ms - instance.ready_ms) / 1000)


def stay_ms(instance: InstanceBeat, now_ms: int) -> int:
    """For how long jobs have had something of an instance that is at work; -1: none has had anything yet.

    Of one at which nobody works, or whose version is too old to say, since it came up.
    """
    if instance.served_ms:
        return now_ms - instance.served_ms
    return -1 if instance.served_ms == 0 and instance.slots_used else now_ms - instance.ready_ms


def residency_ms(instance: InstanceBeat, longest_ms: int) -> int:
    """How long an instance stays though it is idle and its room is wanted.

    Twice its load, where that was measured: a model that is back in a second need not be spared for ten.
    """
    if instance.requested_ms and instance.ready_ms > instance.requested_ms:
        return min(longest_ms, RESIDENCY_PER_LOAD * (instance.ready_ms - instance.requested_ms))
    return longest_ms


def held_bytes(instance: InstanceBeat) -> int:
    """What it takes of its node's budget."""
    return max(instance.resident_bytes, instance.reserved_bytes)


def mib(num_bytes: int) -> str:
    """For people."""
    return f"{max(0, num_bytes) // MIB} MiB"
