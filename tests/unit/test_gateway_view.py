"""What a gateway knows of its fleet, and how it is: looked up once for many who ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from packtrain.broker.beats import NodeBeat
from packtrain.broker.errors import BrokerUnavailable
from packtrain.client import AsyncPacktrain
from packtrain.client.gateway.app import make_app
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.fleet_view import FRESH_S, FleetView
from tests.support.factories import node_beat
from tests.support.memory_transport import AsyncMemoryTransport, MemoryTransport

pytestmark = pytest.mark.unit


class Fleet:
    """Counts how often it is looked at."""

    def __init__(self) -> None:
        self.looks = 0
        self.is_away = False

    async def nodes(self) -> list[Any]:
        self.looks += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise BrokerUnavailable(url="redis://x", reason="gone")
        return [node_beat(models=("a", "b"))]

    async def models(self) -> list[Any]:
        return []

    async def instances(self) -> list[Any]:
        return []


def test_many_who_ask_at_once_cause_one_look_and_the_next_comes_when_it_is_old() -> None:
    fleet, now = Fleet(), [0.0]

    async def ask() -> None:
        view = FleetView(fleet, now=lambda: now[0])  # type: ignore[arg-type]
        seen = await asyncio.gather(*[view.look() for _ in range(20)])
        assert {id(each) for each in seen} == {id(seen[0])}
        assert (fleet.looks, seen[0].offered) == (1, {"a", "b"})
        now[0] += FRESH_S + 0.1
        await view.look()

    asyncio.run(ask())

    assert fleet.looks == 2


def test_a_broker_that_is_away_is_not_asked_by_everybody_either() -> None:
    fleet = Fleet()
    fleet.is_away = True

    async def ask() -> list[Any]:
        view = FleetView(fleet, now=lambda: 0.0)  # type: ignore[arg-type]
        return await asyncio.gather(*[view.look() for _ in range(5)], return_exceptions=True)

    errors = asyncio.run(ask())

    assert [str(error) for error in errors] == [str(BrokerUnavailable(url="redis://x", reason="gone"))] * 5
    assert fleet.looks == 1


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[httpx2.AsyncClient, MemoryTransport]]:
    transport = AsyncMemoryTransport()
    async with AsyncPacktrain(transport=transport) as fleet:
        inside = httpx2.ASGITransport(make_app(Door(fleet)))
        async with httpx2.AsyncClient(transport=inside, base_url="http://gateway") as http:
            yield http, transport.blocking


def test_health_waits_for_a_node_with_a_model_as_llama_server_does() -> None:
    async def ask() -> list[httpx2.Response]:
        answers = []
        for has_node in (False, True):
            async with gateway() as (http, transport):
                if has_node:
                    transport.nodes = _one_node  # type: ignore[method-assign]
                answers += [await http.get(path) for path in ("/livez", "/readyz", "/health", "/v1/health")]
        return answers

    answers = asyncio.run(ask())
    before, after = answers[:4], answers[4:]

    assert [each.status_code for each in before] == [200, 200, 503, 503]
    assert before[2].json()["error"]["message"].startswith("Loading model")
    assert before[2].headers["retry-after"] == "2"
    assert [each.status_code for each in after] == [200] * 4


def test_figures_of_a_fleet_that_is_away_say_so() -> None:
    async def scrape() -> str:
        async with gateway() as (http, transport):
            transport.nodes = _away  # type: ignore[method-assign]
            assert (await http.get("/readyz")).status_code == 503
            return (await http.get("/metrics")).text

    said = asyncio.run(scrape())

    assert "packtrain_broker_up 0.0" in said
    assert 'packtrain_http_requests_total{method="GET",model="",route="/readyz",status="503"} 1.0' in said


def _one_node() -> list[NodeBeat]:
    return [node_beat()]


def _away() -> Any:
    raise BrokerUnavailable(url="redis://x", reason="gone")
