"""The native routes over a fleet in memory: whose jobs are whose, who may administrate, streams that are resumed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from starlette.requests import Request

from packtrain.broker.ids import JobId, job_id_for_key
from packtrain.broker.job_spec import JobSpec
from packtrain.client import AsyncPacktrain
from packtrain.client.gateway.access import Admission, Caller
from packtrain.client.gateway.app import make_app
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused
from packtrain.client.gateway.native_events import Places
from packtrain.client.native_wire import PREFIX, read_event
from packtrain.client.openai import Fault
from tests.support.factories import MODEL
from tests.support.memory_transport import AsyncMemoryTransport, MemoryTransport

pytestmark = pytest.mark.unit

SPEC = {"kind": "complete", "model": MODEL, "prompt": "hello"}
CALLERS = {
    "alice": Caller("alice", "k1", is_admin=False),
    "bob": Caller("bob", "k2", is_admin=False),
    "limited": Caller("limited", "k5", is_admin=False),
    "root": Caller(None, "k3", is_admin=True),
    "small": Caller("small", "k4", is_admin=False, models=frozenset({"other"})),
}


class ByKey:
    """The bearer token is the name of the caller. "limited" may have one job under way."""

    def __init__(self) -> None:
        self.under_way: list[str] = []
        self.ended: list[tuple[str, int | None]] = []

    async def caller(self, request: Request) -> Caller:
        return CALLERS[request.headers["authorization"].removeprefix("Bearer ")]

    async def admit(self, caller: Caller, specs: Sequence[JobSpec]) -> Admission:
        if caller.user == "limited" and self.under_way:
            fault = Fault(429, "rate_limit_error", "rate_limit_exceeded", "one at a time", retry_after_s=1)
            raise Refused(fault)
        return Counted(self, str(caller.user)) if caller.user == "limited" else Admission()


class Counted(Admission):
    """Of one who may have one job under way."""

    counts = True

    def __init__(self, access: ByKey, user: str) -> None:
        self._access, self._user = access, user
        access.under_way.append(user)

    async def end(self, tokens: int | None) -> None:
        self._access.under_way.remove(self._user)
        self._access.ended.append((self._user, tokens))


@dataclass
class World:
    """A gateway before a fleet in memory."""

    http: httpx2.AsyncClient
    fleet: MemoryTransport
    access: ByKey

    async def call(self, who: str, method: str, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {who}", **headers}
        content = None if body is None else json.dumps(body)
        return await self.http.request(method, PREFIX + path, content=content, headers=headers)

    async def submit(self, who: str, **body: Any) -> str:
        response = await self.call(who, "POST", "/jobs", {"spec": SPEC, **body})
        assert response.status_code == 200, response.text
        return str(response.json()["job_id"])


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    transport = AsyncMemoryTransport()
    async with AsyncPacktrain(transport=transport) as fleet:
        access = ByKey()
        app = make_app(Door(fleet, access=access))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://gateway") as http:
            yield World(http, transport.blocking, access)


def runs(main: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with world() as found:
            await main(found)

    asyncio.run(run())


def code(response: httpx2.Response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "data"}
    return str(error["code"])


def test_a_job_of_somebody_else_does_not_exist() -> None:
    async def main(world: World) -> None:
        job_id = await world.submit("alice")
        ways = [
            ("GET", f"/jobs/{job_id}", None),
            ("GET", f"/jobs/{job_id}/spec", None),
            ("GET", f"/jobs/{job_id}/result?wait_s=0", None),
            ("GET", f"/jobs/{job_id}/explanation", None),
            ("GET", f"/jobs/{job_id}/events", None),
            ("GET", f"/events?job={job_id}", None),
            ("POST", f"/jobs/{job_id}/cancel", None),
            ("POST", "/events", {"after": {job_id: "0"}, "wait_s": 0}),
        ]
        for method, path, body in ways:
            response = await world.call("bob", method, path, body)
            assert (response.status_code, code(response)) == (404, "unknown_job"), path
        missing = await world.call("bob", "GET", f"/jobs/{'0' * 32}")
        theirs = await world.call("bob", "GET", f"/jobs/{job_id}")
        assert missing.text.replace("0" * 32, job_id) == theirs.text

        assert (await world.call("bob", "GET", "/jobs")).json() == {"jobs": []}
        found = await world.call("bob", "POST", "/jobs/lookup", {"ids": [job_id]})
        assert found.json() == {"jobs": {job_id: None}}
        for who in ("alice", "root"):
            assert (await world.call(who, "GET", f"/jobs/{job_id}")).json()["user"] == "alice"
            assert len((await world.call(who, "GET", "/jobs")).json()["jobs"]) == 1

    runs(main)


def test_jobs_are_of_the_user_of_the_key_whoever_they_name() -> None:
    async def main(world: World) -> None:
        job_id = await world.submit("alice", spec={**SPEC, "user": "bob"})
        assert (await world.call("alice", "GET", f"/jobs/{job_id}")).json()["user"] == "alice"
        job_id = await world.submit("root", spec={**SPEC, "user": "bob"})
        assert (await world.call("bob", "GET", f"/jobs/{job_id}")).json()["user"] == "bob"

    runs(main)


def test_two_users_who_think_of_the_same_name_get_two_jobs() -> None:
    async def main(world: World) -> None:
        keys = [await world.submit(who, idempotency_key="monday") for who in ("alice", "alice", "bob")]
        assert keys == [job_id_for_key(user, "monday") for user in ("alice", "alice", "bob")]
        by_header = await world.call("alice", "POST", "/jobs", {"spec": SPEC}, **{"Idempotency-Key": "monday"})
        assert by_header.json()["job_id"] == keys[0]
        assert by_header.json()["is_new"] is False

        ids = [await world.submit(who, id="f" * 32) for who in ("alice", "alice", "bob", "root")]
        assert ids[0] == ids[1]
        assert len(set(ids)) == 3
        both = await world.call("root", "POST", "/jobs", {"spec": SPEC, "id": "e" * 32, "idempotency_key": "x"})
        assert (both.status_code, code(both)) == (400, "invalid_parameter")

    runs(main)


def test_what_concerns_all_is_for_administrators() -> None:
    ways = [
        ("PUT", f"/models/{MODEL}/desired", {"replicas": 1}),
        ("POST", f"/models/{MODEL}/load", {}),
        ("POST", f"/models/{MODEL}/unload", None),
        ("PATCH", "/nodes/n1", {"draining": True}),
        ("POST", "/nodes/n1/pulls", {"repo": "a/b", "file": "c.gguf"}),
        ("GET", f"/pulls/{'0' * 32}", None),
    ]

    async def main(world: World) -> None:
        for method, path, body in ways:
            response = await world.call("alice", method, path, body)
            assert (response.status_code, code(response)) == (403, "not_permitted"), path
        assert not world.fleet.desired
        for method, path, body in ways[:-1]:
            response = await world.call("root", method, path, body)
            assert response.status_code == 200, response.text
        assert code(await world.call("root", *ways[-1])) == "unknown_pull"
        pull = (await world.call("root", "POST", "/nodes/n1/pulls", {"repo": "a/b"})).json()["id"]
        assert (await world.call("root", "GET", f"/pulls/{pull}")).json()["state"] == "done"

    runs(main)


def test_a_model_that_a_key_may_not_use_is_none_for_it() -> None:
    async def main(world: World) -> None:
        response = await world.call("small", "POST", "/jobs", {"spec": SPEC})
        assert (response.status_code, code(response)) == (404, "unknown_model")
        assert (await world.call("small", "GET", "/models")).json() == {"models": []}
        assert [info["id"] for info in (await world.call("alice", "GET", "/models")).json()["models"]] == [MODEL]

    runs(main)


def test_a_job_counts_until_it_has_ended_whoever_reads_it() -> None:
    async def main(world: World) -> None:
        first = await world.submit("limited", id="a" * 32)
        assert await world.submit("limited", id="a" * 32) == first  # no second one
        full = await world.call("limited", "POST", "/jobs", {"spec": SPEC})
        assert (full.status_code, code(full)) == (429, "rate_limit_exceeded")
        assert full.json()["error"]["data"] == {"retry_after_s": 1}
        world.fleet.answer_all("yes")
        await world.submit("limited")

        assert world.access.ended == [("limited", 1)]
        assert world.access.under_way == ["limited"]
        world.fleet.answer_all("yes")
        wrong = await world.call("limited", "POST", "/jobs", {"spec": {**SPEC, "model": "nobody"}})
        assert code(wrong) == "unknown_model"
        assert world.access.ended[1:] == [("limited", 1), ("limited", 0)]
        assert not world.access.under_way

    runs(main)


def test_a_stream_is_resumed_where_it_broke_off_and_ends_for_good() -> None:
    async def main(world: World) -> None:
        job_id = await world.submit("alice")
        world.fleet.answer_all("yes")
        events = parsed((await world.call("alice", "GET", f"/jobs/{job_id}/events")).text)
        assert [read_event(data).text for _, data in events] == ["yes", ""]

        first, last = (place for place, _ in events)
        again = await world.call("alice", "GET", f"/jobs/{job_id}/events", **{"Last-Event-ID": first})
        assert parsed(again.text) == events[1:]
        assert last.endswith("-end")
        done = await world.call("alice", "GET", f"/jobs/{job_id}/events", **{"Last-Event-ID": last})
        assert (done.status_code, done.text) == (204, "")
        odd = await world.call("alice", "GET", f"/jobs/{job_id}/events", **{"Last-Event-ID": "$"})
        assert (odd.status_code, code(odd)) == (400, "invalid_parameter")

    runs(main)


@pytest.mark.parametrize("place", ["9" * 20, f"1-{'9' * 20}", "$", "+", "1-", "-1", ""])
def test_a_place_that_no_stream_has_is_refused_before_others_read_along_with_it(place: str) -> None:
    async def main(world: World) -> None:
        job_id = await world.submit("alice")
        answers = [await world.call("alice", "POST", "/events", {"after": {job_id: place}, "wait_s": 0})]
        if place:
            headers = {"Last-Event-ID": place}
            answers.append(await world.call("alice", "GET", f"/jobs/{job_id}/events", **headers))
        for answer in answers:
            assert (answer.status_code, code(answer)) == (400, "invalid_parameter")

    runs(main)


def test_several_jobs_share_a_stream_that_resumes_each_of_them() -> None:
    async def main(world: World) -> None:
        jobs = [await world.submit("alice") for _ in range(3)]
        world.fleet.answer_all("yes")
        path = "/events?" + "&".join(f"job={job_id}" for job_id in jobs)
        events = parsed((await world.call("alice", "GET", path)).text)
        assert len(events) == 6
        for number, (place, _) in enumerate(events, 1):
            again = await world.call("alice", "GET", path, **{"Last-Event-ID": place})
            rest = parsed(again.text) if again.status_code == 200 else []
            assert sorted(data for _, data in rest) == sorted(data for _, data in events[number:])

    runs(main)


def test_a_feed_of_many_ends_with_the_last_of_them() -> None:
    async def main(world: World) -> None:
        jobs = [await world.submit("alice") for _ in range(2)]
        world.fleet.answer_all("yes")
        body = {"after": dict.fromkeys(jobs, "0")}
        response = await world.call("alice", "POST", "/events", body, Accept="text/event-stream")
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [read_event(data) for _, data in parsed(response.text)]
        assert {event.job_id for event in events if event.end} == set(jobs)
        polled = await world.call("alice", "POST", "/events", {**body, "wait_s": 0})
        assert len(polled.json()["events"]) == len(events) == 4
        assert "records" not in polled.json()
        whole = await world.call("alice", "POST", "/events", {**body, "wait_s": 0, "records": True})
        assert {record["id"]: record["outcome"]["text"] for record in whole.json()["records"]} == dict.fromkeys(
            jobs, "yes"
        )
        for wrong in ({"after": {"x": "0"}}, {"after": {jobs[0]: "$"}}, {"after": {}, "wait_s": 1e9}, {}):
            assert code(await world.call("alice", "POST", "/events", wrong)) == "invalid_parameter"

    runs(main)


def parsed(text: str) -> list[tuple[str, bytes]]:
    """Id and data of each event."""
    found = []
    for message in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in message.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields.get("id", ""), fields["data"].encode()))
    return found


def test_places_know_each_job_of_a_stream() -> None:
    a, b = JobId("a" * 32), JobId("b" * 32)
    places = Places([a, b], "")
    assert places.cursors().after == {a: "0", b: "0"}
    assert Places([a, b], "5-1,0").cursors().after == {a: "5-1", b: "0"}
    assert Places([a, b], "5-1-end,7-0").cursors().after == {b: "7-0"}


def test_every_route_is_on_the_page() -> None:
    async def main(world: World) -> None:
        page = (await world.http.get("/openapi.json")).json()
        native = {path for path in page["paths"] if path.startswith(PREFIX)}
        assert len(native) == 19
        for path in native:
            for route in page["paths"][path].values():
                assert route["summary"]

    runs(main)
