"""The asyncio client: the same methods as the sync one, waits that hold no threads, and tasks that are cancelled."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from packtrain.broker.ids import JobId
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import Submitted
from packtrain.broker.states import JobState
from packtrain.client import (
    AsyncJob,
    AsyncPacktrain,
    AsyncTextStream,
    Job,
    Packtrain,
    Result,
    ResultTimeout,
    TextStream,
)
from packtrain.client.threads import THREADS
from tests.support.factories import MODEL
from tests.support.memory_transport import AsyncMemoryTransport, MemoryTransport

pytestmark = pytest.mark.unit


@asynccontextmanager
async def client() -> AsyncIterator[tuple[AsyncPacktrain, MemoryTransport]]:
    transport = AsyncMemoryTransport()
    async with AsyncPacktrain(transport=transport) as fleet:
        yield fleet, transport.blocking
    assert transport.blocking.is_closed


async def until(look: Callable[[], bool]) -> None:
    while not look():
        await asyncio.sleep(0.005)


def public_methods(cls: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(cls, callable) if not name.startswith("_")}


def parameters(method: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    found = list(inspect.signature(method).parameters.values())
    return [(p.name, p.kind, p.default) for p in found if p.name != "self"]


@pytest.mark.parametrize(("sync", "twin"), [(Packtrain, AsyncPacktrain), (Job, AsyncJob)])
def test_every_method_has_a_twin_with_the_same_parameters(sync: type, twin: type) -> None:
    ours, theirs = public_methods(sync), public_methods(twin)

    assert ours.keys() == theirs.keys()
    assert {name: parameters(ours[name]) for name in ours} == {name: parameters(theirs[name]) for name in ours}
    assert all(method.__doc__ for method in theirs.values())
    instant = {name for name in theirs if not is_asynchronous(theirs[name])}
    assert instant <= {"job"}


def is_asynchronous(method: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


def test_the_twins_are_made_and_left_alike() -> None:
    assert parameters(Packtrain) == parameters(AsyncPacktrain)
    assert public_methods(TextStream).keys() == {"close"}
    assert public_methods(AsyncTextStream).keys() == {"aclose"}
    for sync, twin in ((Packtrain, AsyncPacktrain), (TextStream, AsyncTextStream)):
        assert hasattr(sync, "__exit__")
        assert hasattr(twin, "__aexit__")


def test_a_hundred_long_waits_hold_no_thread() -> None:
    async def main() -> None:
        async with client() as (fleet, transport):
            jobs = [await fleet.submit(MODEL, f"prompt {i}", raw=True) for i in range(100)]
            waits = [asyncio.create_task(job.result(timeout=60)) for job in jobs]
            await asyncio.sleep(0.2)

            begin = time.monotonic()
            assert not any(task.done() for task in waits)
            assert len(await asyncio.gather(*(job.status() for job in jobs))) == 100
            assert sum(t.name.startswith("packtrain") for t in threading.enumerate()) <= THREADS
            assert transport.answer_all() == 100
            results = await asyncio.gather(*waits)

            assert [result.text for result in results] == ["yes"] * 100
            assert time.monotonic() - begin < 10  # of 60 that a wait held in one of eight threads would cost

    asyncio.run(main())


def test_a_wait_ends_after_its_timeout() -> None:
    async def main() -> None:
        async with client() as (fleet, _):
            job = await fleet.submit(MODEL, "never", raw=True)
            with pytest.raises(ResultTimeout, match=r"0\.05"):
                await job.result(timeout=0.05)
            assert (await job.status()).state is JobState.QUEUED

    asyncio.run(main())


def test_answers_of_several_jobs_come_together_each_under_its_place() -> None:
    async def run() -> list[tuple[int, str]]:
        async with client() as (fleet, memory):
            jobs = [await fleet.submit(MODEL, f"prompt {number}") for number in range(3)]
            memory.answer_all()
            several = [(place, str(found.text)) async for place, found in fleet.answers(jobs)]
            sync = Packtrain(transport=memory)
            again = [(place, str(found.text)) for place, found in sync.answers([sync.job(job.id) for job in jobs])]
            assert sorted(again) == sorted(several)
            return several

    found = asyncio.run(run())

    for place in range(3):  # each its text, and then its result with the same text
        assert [text for at, text in found if at == place] == ["yes", "yes"]


def test_cancelling_the_task_that_reads_a_stream_cancels_the_job() -> None:
    async def main() -> None:
        async with client() as (fleet, transport):

            async def read() -> None:
                async with await fleet.stream(MODEL, "!long", raw=True) as stream:
                    async for _ in stream:
                        pass

            task = asyncio.create_task(read())
            await until(lambda: bool(transport.submitted))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            (status,) = transport.recent(1)
            assert status.state is JobState.CANCELLED

    asyncio.run(main())


def test_cancelling_a_task_that_waits_for_a_result_leaves_the_job() -> None:
    async def main() -> None:
        async with client() as (fleet, transport):
            task = asyncio.create_task(fleet.generate(MODEL, "x", raw=True))
            await until(lambda: bool(transport.submitted))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            assert transport.answer_all() == 1

    asyncio.run(main())


@pytest.mark.parametrize(("options", "state"), [({}, JobState.CANCELLED), ({"idempotency_key": "k"}, JobState.QUEUED)])
def test_a_submit_that_is_cancelled_on_its_way_leaves_no_job_without_a_name(
    options: dict[str, Any], state: JobState
) -> None:
    async def main() -> None:
        async with client() as (fleet, transport):
            arrived, go_on = threading.Event(), threading.Event()
            really = transport.submit

            def slowly(job_id: JobId, spec: JobSpec) -> Submitted:
                arrived.set()
                go_on.wait()
                return really(job_id, spec)

            transport.submit = slowly  # type: ignore[method-assign]
            task = asyncio.create_task(fleet.submit(MODEL, "x", raw=True, **options))
            await until(arrived.is_set)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            await until(lambda: bool(transport.submitted))
            await asyncio.sleep(0.05)

            (status,) = transport.recent(1)
            assert status.state is state

    asyncio.run(main())


def test_a_submit_that_is_cancelled_is_undone_even_when_the_client_is_closed_at_once() -> None:
    async def main() -> None:
        async with client() as (fleet, transport):
            arrived, go_on = threading.Event(), threading.Event()
            really = transport.submit

            def slowly(job_id: JobId, spec: JobSpec) -> Submitted:
                arrived.set()
                go_on.wait()
                return really(job_id, spec)

            transport.submit = slowly  # type: ignore[method-assign]
            task = asyncio.create_task(fleet.submit(MODEL, "x", raw=True))
            await until(arrived.is_set)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            closing = asyncio.create_task(fleet.close())
            await asyncio.sleep(0.05)
            go_on.set()
            await closing

            assert [status.state for status in transport.recent(9)] == [JobState.CANCELLED]

    asyncio.run(main())


def test_closing_the_client_cancels_what_a_map_has_in_flight() -> None:
    async def main() -> None:
        async with client() as (fleet, transport):
            results = fleet.map(MODEL, [f"prompt {i}" for i in range(9)], in_flight=4, raw=True)
            task: asyncio.Task[Result] = asyncio.create_task(anext(results))  # type: ignore[arg-type]
            await until(lambda: len(transport.submitted) == 4)
            await asyncio.sleep(0.05)

            await fleet.close()

            assert {status.state for status in transport.recent(9)} == {JobState.CANCELLED}
            task.cancel()
            await asyncio.wait([task])
            task.exception() if not task.cancelled() else None

    asyncio.run(main())


def test_cancelling_a_map_cancels_what_is_in_flight() -> None:
    async def main() -> None:
        async with client() as (fleet, transport):

            async def read() -> None:
                async for _ in fleet.map(MODEL, [f"prompt {i}" for i in range(9)], in_flight=4, raw=True):
                    pass

            task = asyncio.create_task(read())
            await until(lambda: len(transport.submitted) == 4)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            assert {status.state for status in transport.recent(9)} == {JobState.CANCELLED}

    asyncio.run(main())


def test_choices_embeddings_and_the_fleet_are_there() -> None:
    async def main() -> None:
        async with client() as (fleet, transport):
            task = asyncio.create_task(fleet.choices(MODEL, "x", 3, seed=1, raw=True))
            await until(lambda: len(transport.submitted) == 3)
            transport.answer_all()
            assert [result.text for result in await task] == ["yes"] * 3

            await fleet.load(MODEL)
            assert transport.desired[MODEL].replicas == 1
            await fleet.unload(MODEL)
            assert transport.desired[MODEL].replicas == 0
            assert [status.state for status in await fleet.jobs(2)] == [JobState.SUCCEEDED] * 2
            assert (await fleet.waiting(), await fleet.instances()) == ({}, [])

    asyncio.run(main())
