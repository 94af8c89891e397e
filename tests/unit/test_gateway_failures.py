"""What nobody expected is still an answer that a client can read, and name to who runs the gateway."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from packtrain.client import AsyncPacktrain
from packtrain.client.gateway.app import make_app
from packtrain.client.gateway.door import Door
from tests.support.memory_transport import AsyncMemoryTransport, MemoryTransport

pytestmark = pytest.mark.unit


def _fails(_: MemoryTransport) -> None:
    raise RuntimeError("a bug")


def test_a_bug_is_a_500_with_its_request_id_and_no_word_of_its_inside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MemoryTransport, "models", _fails)

    async def ask(path: str) -> httpx2.Response:
        async with AsyncPacktrain(transport=AsyncMemoryTransport()) as fleet:
            transport = httpx2.ASGITransport(app=make_app(Door(fleet)))
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.get(path)

    answer = asyncio.run(ask("/v1/models"))

    assert answer.status_code == 500
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == "internal_error"
    assert "a bug" not in answer.text
    assert "a bug" in caplog.text
