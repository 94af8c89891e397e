"""What a gateway knows of its fleet without asking each time: health checks and scrapes come from many sides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.errors import BrokerUnavailable
from packtrain.broker.model_info import ModelInfo
from packtrain.client.aio import AsyncPacktrain

#: A view is shown for this long, seconds.
FRESH_S = 1.0
#: A look that takes longer has failed. The client itself would try again for half a minute.
LOOK_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class View:
    """A fleet at one moment."""

    nodes: Sequence[NodeBeat] = ()
    models: Sequence[ModelInfo] = ()
    instances: Sequence[InstanceBeat] = ()

    @property
    def offered(self) -> set[str]:
        """Models that some live node has."""
        return {model for node in self.nodes for model in node.models}


class FleetView:
    """The view of one gateway. Many may ask at once; one of them looks."""

    def __init__(self, fleet: AsyncPacktrain, now: Callable[[], float] = time.monotonic) -> None:
        self._fleet = fleet
        self._now = now
        self._turn = asyncio.Lock()
        self._seen: View | BrokerUnavailable | None = None
        self._seen_at = 0.0

    async def look(self) -> View:
        """The fleet, as it was at most a second ago.

        Raises:
            BrokerUnavailable: It could not be seen.
        """
        async with self._turn:
            if self._seen is None or self._now() - self._seen_at > FRESH_S:
                try:
                    self._seen = await asyncio.wait_for(self._look(), LOOK_TIMEOUT_S)
                except BrokerUnavailable as error:
                    self._seen = error
                except TimeoutError:
                    self._seen = BrokerUnavailable(
                        url="the fleet's URL", reason=f"it did not answer within {LOOK_TIMEOUT_S:g} s"
                    )
                self._seen_at = self._now()
        if isinstance(self._seen, BrokerUnavailable):
            raise BrokerUnavailable(**self._seen.data)
        return self._seen

    async def _look(self) -> View:
        return View(*await asyncio.gather(self._fleet.nodes(), self._fleet.models(), self._fleet.instances()))
