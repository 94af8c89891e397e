"""What every route of a gateway works with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from packtrain.broker.tally_store import Counters
from packtrain.broker.tracing import Tracing
from packtrain.client.aio import AsyncPacktrain
from packtrain.client.gateway.access import Access, OpenAccess
from packtrain.client.gateway.image_urls import ImageUrls
from packtrain.client.gateway.metrics import Metrics
from packtrain.client.gateway.page_watch import Watch
from packtrain.client.gateway.readers import Readers
from packtrain.client.gateway.settings import GatewaySettings


@dataclass(frozen=True, slots=True)
class Door:
    """A fleet with the manners of a gateway before it."""

    fleet: AsyncPacktrain
    settings: GatewaySettings = field(default_factory=GatewaySettings)
    access: Access = field(default_factory=OpenAccess)
    counters: Counters | None = None  # of the fleet, for `/metrics`; None: there is no broker to ask
    metrics: Metrics = field(default_factory=Metrics)
    files: Path | None = None  # folder of uploads and batches; None: there are none
    watch: Watch | None = None  # looks at the fleet for its page; None: there is no page
    images: ImageUrls = field(default_factory=lambda: ImageUrls(()))  # of requests that name them by URL
    readers: Readers = field(default_factory=Readers)  # of large bodies
    tracing: Tracing | None = None  # sends spans; None: nobody asks for them
    now: Callable[[], float] = time.time  # seconds since 1970
    started: float = field(default_factory=time.time)
    is_ending: asyncio.Event = field(default_factory=asyncio.Event)  # streams that can be resumed elsewhere end now
