"""Supervision: whether an instance may go on, and why it ended, as pure functions of what its agent sees.

Every state has a deadline. An instance that misses it is killed, its jobs go back to the queue at once, and the
coordinator decides what to load again.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from packtrain.broker.ids import InstanceId
from packtrain.broker.outcome import Cause
from packtrain.broker.states import InstanceState
from packtrain.workers.waking import SETTLE_S

#: Importing Celery and llama.cpp takes 1 to 3 s, on a busy machine ten times that.
STARTING_S = 60.0
#: One token.
WARMING_S = 120.0
#: After the time for running jobs, until the process must be gone.
DRAINING_MARGIN_S = 15.0
#: Exit codes of an instance that ends itself.
EXIT_LOAD_FAILED, EXIT_THREAD_DIED = 3, 4
#: What mostly stands behind a signal that nobody here sent.
_MEANING = {
    "SIGABRT": "a check inside llama.cpp failed",
    "SIGSEGV": "llama.cpp touched memory that is not its own",
    "SIGBUS": "the model file changed or its disk failed while it was in use",
    "SIGILL": "llama.cpp was built for another CPU; build it on this one with `make setup`",
    "SIGFPE": "llama.cpp divided by zero; the model file is probably broken",
    "SIGKILL": "by hand, or by the kernel because memory ran out",
}
#: What llama.cpp writes before it ends a head that reaches a shard no more.
_OF_RPC = "Remote RPC server"
_LOST_SHARD = "a shard of its group ended, or the way to it was cut"
#: What llama.cpp and Python say when they get no memory.
_NO_MEMORY = re.compile(
    r"out of memory|fail\w* to allocate|unable to allocate|cannot allocate|bad_alloc", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Limits:
    """From the settings; seconds."""

    load_s: float
    drain_s: float
    stall_s: float


@dataclass(frozen=True, slots=True)
class Observed:
    """What the agent sees of an instance; ages in seconds."""

    state: InstanceState
    state_age_s: float
    report_age_s: float
    is_busy: bool
    step_age_s: float  # of the engine, when it reported
    hub_age_s: float  # of the Celery consumer loop, when it reported
    broker_reachable_s: float  # for how long the broker has answered; 0 while it is away
    awake_s: float = float("inf")  # since this machine slept


def verdict(seen: Observed, limits: Limits) -> str | None:
    """Why the instance must be killed now, or None.

    >>> limits = Limits(load_s=600, drain_s=30, stall_s=60)
    >>> verdict(Observed(InstanceState.STARTING, 61, 61, False, 0, 0, 99), limits)
    'did not start within 60 s'
    """
    if seen.awake_s < SETTLE_S:  # it slept as we did: let it wake up first
        return None
    match seen.state:
        case InstanceState.STARTING if seen.state_age_s > STARTING_S:
            return f"did not start within {STARTING_S:.0f} s"
        case InstanceState.LOADING if seen.state_age_s > limits.load_s:
            return f"was not loaded within {limits.load_s:.0f} s (raise PACKTRAIN_LOAD_TIMEOUT_S for slow disks)"
        case InstanceState.WARMING if seen.state_age_s > WARMING_S:
            return f"did not produce its first token within {WARMING_S:.0f} s"
        case InstanceState.DRAINING if seen.state_age_s > limits.drain_s + DRAINING_MARGIN_S:
            return f"did not end within {limits.drain_s + DRAINING_MARGIN_S:.0f} s of draining"
        case InstanceState.READY:
            return _stalled(seen, limits)
        case _:
            return None


def why_ended(
    instance: InstanceId, exit_code: int, *, said: str = "", kill_reason: str = "", tail: Sequence[str] = ()
) -> Cause:
    """How a process that is gone came to its end.

    Args:
        exit_code: Negative: the signal that ended it.
        said: What it reported of itself, such as why the model cannot be loaded.
        kill_reason: Why its agent killed it.
        tail: The last lines that it wrote to stderr.

    >>> why_ended(InstanceId("m-1"), -6).reason
    'was killed by SIGABRT (a check inside llama.cpp failed)'
    """
    name = _signal_name(-exit_code) if exit_code < 0 else ""
    if kill_reason:
        reason = f"was killed by its agent, for it {kill_reason}"
    elif said:
        return Cause(instance=instance, reason=said, exit_code=exit_code)
    elif name:
        meaning = _LOST_SHARD if any(_OF_RPC in line for line in tail) else _MEANING.get(name, "")
        reason = f"was killed by {name}" + (f" ({meaning})" if meaning else "")
    else:
        reason = "ended since a thread of it died" if exit_code == EXIT_THREAD_DIED else f"exited with code {exit_code}"
    return Cause(instance=instance, reason=reason, exit_code=None if name else exit_code, signal=name, tail=tuple(tail))


def is_out_of_memory(cause: Cause, kill_reason: str = "") -> bool:
    """True when an end looks as if memory ran out: the kernel's SIGKILL, or llama.cpp's word that it got none.

    >>> is_out_of_memory(why_ended(InstanceId("m-1"), -9))
    True
    >>> is_out_of_memory(why_ended(InstanceId("m-1"), 3, said="it has no tensors"))
    False
    """
    if kill_reason:
        return False
    return cause.signal == "SIGKILL" or bool(_NO_MEMORY.search(cause.reason))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has none
        return f"signal {number}"


def _stalled(seen: Observed, limits: Limits) -> str | None:
    if seen.report_age_s > limits.stall_s:
        return f"has not reported for {seen.report_age_s:.0f} s"
    if seen.is_busy and seen.step_age_s > limits.stall_s:
        return f"has shown no sign of life of its engine for {seen.step_age_s:.0f} s"
    # While the broker is away a consumer loop does nothing but reconnect, in pauses that grow to a minute and more.
    if seen.broker_reachable_s > 2 * limits.stall_s and seen.hub_age_s > limits.stall_s:
        return f"has not turned its consumer loop for {seen.hub_age_s:.0f} s"
    return None
