"""How a node stands in its fleet: on what terms it takes part, and whether it may be given anything new.

The agent's loop asks it at each tick who must leave, and tells it what operators want, what failed and what works.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.ids import InstanceId
from packtrain.broker.node_wishes import NodeWish
from packtrain.broker.outcome import Cause
from packtrain.broker.settings import Settings
from packtrain.broker.states import InstanceState
from packtrain.workers.node_terms import terms_of
from packtrain.workers.over_budget import Holder, leaving
from packtrain.workers.quarantine import Failure, Quarantine, is_refusal, may_be_the_node

logger = logging.getLogger(__name__)


class NodeStanding:
    """Of one node; belongs to its agent's loop.

    Args:
        wish: What operators want of it, as it stands at the start.
        total_memory: Bytes of the machine or its container.
        all_cores: That it may keep busy.
    """

    def __init__(self, settings: Settings, wish: NodeWish, *, total_memory: int, all_cores: int) -> None:
        self._settings = settings
        self._total_memory, self._all_cores = total_memory, all_cores
        self.terms = terms_of(settings, wish, total_memory=total_memory, all_cores=all_cores)
        self.quarantine = Quarantine()
        self._said = ""  # the last quarantine that was logged
        logger.info("Takes part with %s", self.terms, extra={"event": "node.terms"})
        for name in ("memory", "cores"):
            given, wished = getattr(settings, name), getattr(wish, name)
            if given and wished and given != wished:
                logger.warning(
                    "It was started with %s %d, but `packtrain nodes set` asked for %d; to take that back: "
                    "packtrain nodes set %s --%s start", name, given, wished, settings.node, name,
                    extra={"event": "node.overruled"},
                )  # fmt: skip

    def follow(self, wish: NodeWish, *, now_ms: int) -> bool:
        """Take over what operators want; True when the terms are others now."""
        self.quarantine.resume(wish.resumed_ms)
        reason = self.quarantine.reason(now_ms)
        if reason != self._said:
            self._said = reason
            said = f"In quarantine: {reason}" if reason else "The quarantine is over"
            logger.warning("%s", said, extra={"event": "node.quarantine"})
        terms = terms_of(self._settings, wish, total_memory=self._total_memory, all_cores=self._all_cores)
        if terms == self.terms:
            return False
        self.terms = terms
        logger.info("Goes on with %s", terms, extra={"event": "node.terms"})
        return True

    def failed(
        self, was: InstanceBeat, cause: Cause, *, kill_reason: str, others: Sequence[InstanceBeat], now_ms: int
    ) -> None:
        """An instance failed to load, or died.

        Args:
            was: Its last beat before that.
            kill_reason: Why its agent killed it, if it did.
            others: That this node has.
        """
        others_run = any(o.state is InstanceState.READY and o.model != was.model for o in others)
        was_serving = was.state is InstanceState.READY
        if may_be_the_node(cause, was_serving=was_serving, kill_reason=kill_reason, others_run=others_run):
            self.quarantine.failed(Failure(now_ms, was.model, str(cause), is_refusal=is_refusal(cause)))

    def must_leave(self, staying: Sequence[InstanceBeat]) -> list[tuple[InstanceId, str]]:
        """Instances that the node has no room for any more, and why; all of them while it drains.

        Args:
            staying: Those that are not on their way out.
        """
        if self.terms.is_draining:
            reason = "the node drains, as `packtrain nodes drain` asked"
            return [(InstanceId(beat.instance), reason) for beat in staying]
        reason = f"the node's budget is {self.terms.memory // 1024**2} MiB now"
        return [(instance, reason) for instance in leaving([_holder(b) for b in staying], self.terms.memory)]


def _holder(beat: InstanceBeat) -> Holder:
    is_idle = beat.state is InstanceState.READY and not beat.slots_used
    return Holder(
        instance=InstanceId(beat.instance),
        reserved_bytes=beat.reserved_bytes,
        resident_bytes=beat.resident_bytes,
        slots_used=0 if is_idle else max(1, beat.slots_used),  # one that loads has jobs waiting for it
        last_used_ms=beat.last_used_ms,
    )
