"""Large bodies, which another process reads: same answers, same refusals, and nothing that outlives its gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from packtrain.broker.server import BrokerServer
from packtrain.client.gateway.readers import LARGE_VALUES, is_large
from tests.support.fleets import eventually
from tests.support.gateways import Gateway, gateway

pytestmark = pytest.mark.integration

MANY = [1] * (LARGE_VALUES + 1)


@pytest.fixture(scope="module")
def door(broker: BrokerServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway before a fleet without a node."""
    with gateway(broker.url, tmp_path_factory.mktemp("gateway")) as running:
        yield running
        assert "failed" not in running.log.read_text(), "something was not foreseen"


def readers(door: Gateway) -> list[psutil.Process]:
    return [each for each in psutil.Process(door.process.pid).children() if "spawn_main" in " ".join(each.cmdline())]


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "nosuch", "prompt": "x"}),
        ("/v1/completions", {"model": "No Such", "prompt": "x"}),
        ("/v1/completions", {"model": "nosuch", "prompt": ""}),
        ("/v1/completions", {"model": "nosuch", "prompt": "x", "temperature": 9}),
        ("/v1/chat/completions", {"model": "nosuch", "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/embeddings", {"model": "nosuch", "input": ["x", "y"]}),
        ("/v1/responses", {"model": "nosuch", "input": "x"}),
        ("/v1/messages", {"model": "nosuch", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}),
        ("/api/embed", {"model": "nosuch", "input": "x"}),
        ("/packtrain/v1/jobs", {"spec": {"kind": "complete", "model": "nosuch", "prompt": "x"}}),
        ("/packtrain/v1/jobs", {"spec": 5}),
        ("/v1/batches", {"input_file_id": "file-x", "endpoint": "/v1/completions", "completion_window": "24h"}),
        ("/v1/completions", {"model": "nosuch", "prompt": "x", "nested": deep(200)}),
    ],
)
def test_a_large_body_is_refused_as_a_small_one_is(door: Gateway, path: str, body: dict[str, Any]) -> None:
    large = json.dumps({**body, "nobody_knows": MANY}).encode()
    assert is_large(large)

    as_small, as_large = door.post(path, body), door.http.post(path, content=large)

    assert as_small.status_code in (400, 404), as_small.text
    assert as_large.status_code == as_small.status_code
    assert {**as_large.json(), "request_id": ""} == {**as_small.json(), "request_id": ""}


def test_a_large_body_that_is_no_json_is_refused(door: Gateway) -> None:
    response = door.http.post("/v1/completions", content=b"[" * (LARGE_VALUES + 1))

    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_parameter")


def test_a_million_tokens_are_not_tried_as_texts_one_by_one(door: Gateway) -> None:
    response = door.post("/v1/completions", {"model": "nosuch", "prompt": [1] * 1_200_000})

    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "prompt_tokens")
    assert len(error["message"]) < 300


def test_readers_that_died_are_replaced_and_none_outlives_its_gateway(door: Gateway) -> None:
    body = {"model": "nosuch", "prompt": "x", "nobody_knows": MANY}
    assert door.post("/v1/completions", body).status_code == 404
    died = readers(door)
    assert died
    for each in died:
        each.kill()

    assert door.post("/v1/completions", body).status_code == 404
    left = readers(door)
    assert left
    door.process.kill()
    eventually(lambda: not any(each.is_running() for each in left), "their end")
