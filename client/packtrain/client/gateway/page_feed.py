"""What the fleet page shows, over HTTP: one look at the fleet, a stream of looks, and curves of the last day.

Who is no administrator sees jobs of their own user only, and the models that their key may use (names.py). The fleet
is looked at only while somebody watches, once a second for all who do.

    GET  /packtrain/v1/fleet                     one snapshot
    GET  /packtrain/v1/fleet/feed                `event: snapshot` every second
    GET  /packtrain/v1/fleet/history?span_s=900  curves; 900, 3600 or 86400
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response

from packtrain.broker.errors import InvalidParameter, PacktrainError
from packtrain.broker.history import Series
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.batches_store import Batch, BatchStore
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused
from packtrain.client.gateway.names import Names, names_of
from packtrain.client.gateway.native_form import native_body, written
from packtrain.client.gateway.page_facts import BatchFacts, Facts, InstanceFacts, JobFacts, NodeFacts, QueueFacts
from packtrain.client.gateway.page_shared import Shared
from packtrain.client.gateway.page_watch import SPANS, Watch
from packtrain.client.gateway.streams import EventStream, data
from packtrain.client.native_wire import PREFIX
from packtrain.client.openai.faults import fault_of

F = TypeVar("F", NodeFacts, InstanceFacts, QueueFacts, JobFacts)
M = TypeVar("M", InstanceFacts, QueueFacts)

#: From one snapshot of a stream to the next, seconds.
EVERY_S = 1.0
#: Curves are read anew after a third of what one of their points stands for, seconds, and after a minute at most.
MAX_CURVE_AGE_S = 60.0
#: Jobs that one caller is shown.
MAX_JOBS = 100
#: Batches that are shown.
MAX_BATCHES = 12


def add_feed(app: FastAPI, door: Door, watch: Watch) -> None:
    """Serve them."""
    router = APIRouter(prefix=PREFIX + "/fleet", tags=["Packtrain"])
    url = door.fleet.transport.blocking.url
    now = Shared(watch.look, EVERY_S * 0.9, url)
    curves = {
        span_s: Shared(_of(watch, span_s), min(MAX_CURVE_AGE_S, point_s / 3), url) for span_s, point_s in SPANS.items()
    }
    links = {"Flower": door.settings.flower_url, "Grafana": door.settings.grafana_url}
    links = {name: where for name, where in links.items() if where}

    async def snapshot(caller: Caller) -> Facts:
        facts = for_caller(await now.get(), caller, await names_of(door, caller))
        batches = await asyncio.to_thread(batches_for, door.files, caller) if door.files else ()
        return facts.model_copy(update={"batches": batches, "links": links})

    async def stream(request: Request) -> AsyncGenerator[bytes, None]:
        while not door.is_ending.is_set():
            begun = time.monotonic()
            try:
                caller = await door.access.caller(request)  # each time, for keys are revoked
                yield data((await snapshot(caller)).model_dump_json(), event="snapshot")
            except Refused as refused:
                yield data(native_body(refused.fault), event="error")
                return
            except PacktrainError as error:  # the broker is away; it comes back
                yield data(native_body(fault_of(error)), event="error")
            with suppress(TimeoutError):
                await asyncio.wait_for(door.is_ending.wait(), max(0.1, EVERY_S - (time.monotonic() - begun)))

    @router.get("", summary="The fleet as its page shows it")
    async def fleet(request: Request) -> Response:
        return written(await snapshot(await door.access.caller(request)))

    @router.get("/feed", summary="The same every second, as server-sent events")
    async def feed(request: Request) -> Response:
        await door.access.caller(request)  # refused with a status of its own
        return EventStream(stream(request), "text/event-stream", {})

    @router.get("/history", summary="Curves of tokens, waiting jobs and first tokens")
    async def history(request: Request, span_s: Annotated[int, Query(description="900, 3600 or 86400")] = 900) -> Any:
        await door.access.caller(request)
        if span_s not in curves:
            allowed = ", ".join(map(str, curves))
            raise InvalidParameter(f"span_s = {span_s} is none of {allowed}; take one of them", field="span_s")
        return written(await curves[span_s].get())

    app.include_router(router)


def for_caller(facts: Facts, caller: Caller, names: Names) -> Facts:
    """The part of it that this caller may see: without administration, jobs of their own user only."""
    sees_all = caller.is_admin or caller.user is None

    def told(each: F) -> F:
        return each.model_copy(update={"reason": names.told(each.reason)})

    def of_mine(found: Iterable[M]) -> tuple[M, ...]:
        return tuple(told(each) for each in found if names.shows(each.model))

    events = (event for event in facts.events if not event.model or names.shows(event.model))
    nodes = (node if names.shown is None else node.model_copy(update={"faults": ()}) for node in facts.nodes)
    return facts.model_copy(
        update={
            "user": None if sees_all else caller.user,
            "is_admin": caller.is_admin,
            "jobs": tuple(told(job) for job in facts.jobs if sees_all or job.user == caller.user)[:MAX_JOBS],
            "nodes": tuple(told(node) for node in nodes),
            "instances": of_mine(facts.instances),
            "queues": of_mine(facts.queues),
            "events": tuple(event.model_copy(update={"text": names.told(event.text)}) for event in events),
            "models": tuple(model for model in facts.models if caller.may_use(model.id)),
        }
    )


def batches_for(folder: Path, caller: Caller) -> tuple[BatchFacts, ...]:
    """The newest batches that a caller may see."""
    store = BatchStore(folder)

    def is_wanted(batch: Batch) -> bool:
        return caller.is_admin or batch.owner == caller.key_id

    found, _ = store.page(Batch, is_wanted, after=None, limit=MAX_BATCHES, order="desc")
    return tuple(_batch(store, batch) for batch in found)


def _batch(store: BatchStore, batch: Batch) -> BatchFacts:
    progress = store.progress(batch.id)
    is_leaving = not progress.status.is_over and store.cancel_asked_at(batch.id)
    return BatchFacts(
        id=batch.id, status="cancelling" if is_leaving else str(progress.status), total=progress.total,
        completed=progress.completed, failed=progress.failed, created_s=batch.created_at,
    )  # fmt: skip


def _of(watch: Watch, span_s: int) -> Callable[[], Series]:
    return lambda: watch.history(span_s)
