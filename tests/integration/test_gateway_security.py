"""What a gateway does with requests that mean harm: each is refused with the right error object, and none is a 5xx."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx2
import pytest

from packtrain.broker.server import BrokerServer
from tests.support.gateways import Gateway, gateway

pytestmark = pytest.mark.integration

COMPLETIONS = "/v1/completions"
MAX_BODY = 65_536


@pytest.fixture(scope="module")
def door(broker: BrokerServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway before a fleet without a node: what gets past all checks meets an unknown model."""
    limits = {"PACKTRAIN_HTTP_MAX_BODY": str(MAX_BODY), "PACKTRAIN_HTTP_SLOW_S": "1"}
    with gateway(broker.url, tmp_path_factory.mktemp("gateway"), **limits) as running:
        yield running
        assert "failed" not in running.log.read_text(), "something was not foreseen"


def error_of(status: int, content: bytes) -> dict[str, Any]:
    error = json.loads(content)["error"]
    assert 400 <= status < 500
    assert {"message", "type", "param", "code"} <= error.keys()
    return dict(error)


def raw(door: Gateway, *pieces: bytes, pause_s: float = 0.0) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; status, headers and body of the answer."""
    host, port = door.url.removeprefix("http://").split(":")
    with closing(socket.create_connection((host, int(port)), timeout=20)) as line:
        for piece in pieces:
            try:
                line.sendall(piece)
            except OSError:  # it was closed while we sent
                break
            time.sleep(pause_s)
        answer = b""
        try:
            while more := line.recv(65_536):
                answer += more
        except OSError:
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), dict(each.lower().split(": ", 1) for each in lines), body


def head(line: str = f"POST {COMPLETIONS} HTTP/1.1", *headers: str) -> bytes:
    return "\r\n".join([line, "Host: localhost", "Connection: close", *headers, "", ""]).encode("latin-1")


def sized(content: bytes, *headers: str) -> bytes:
    """The head of a request with this body."""
    return head(f"POST {COMPLETIONS} HTTP/1.1", f"Content-Length: {len(content)}", *headers)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "x", **fields}).encode()


@pytest.mark.parametrize(
    "content",
    [
        body(prompt="\ud800"),
        body(stop=["\udfff"]),
        body(idempotency_key="\ud800"),
        body(idempotency_key="x" * 257),
        body(temperature=float("nan")),
        body(temperature=1e300),
        b'{"model": "m", "prompt": "x", "temperature": 1e999}',
        b'{"model": "m", "prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
        body(max_tokens=10**30),
        body(seed=10**40),
        body(n=10**10),
        body(logit_bias={"9" * 40: 1}),
        body(logit_bias={"a": 1}),
        body(expires_in=1e300),
        body(max_wait=float("inf")),
        body(prompt=[10**30]),
        body(prompt=[-1]),
        body(lane="bulk\r\nX-Evil: 1"),
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"model": "m", "prompt": ' + b'{"a":' * 200 + b"1" + b"}" * 201,
        b"\xff\xfe\x00",
        b"",
    ],
)
def test_values_that_are_none(door: Gateway, content: bytes) -> None:
    response = door.http.post(COMPLETIONS, content=content)

    error_of(response.status_code, response.content)
    assert response.status_code == 400, response.text


@pytest.mark.parametrize(
    "model", ["../../etc/passwd", "/etc/passwd", "a\x00b", "m\r\nX-Evil: 1", "M" * 10_000, "\ud800", "pt:secret", ""]
)
def test_names_of_models_that_are_none(door: Gateway, model: str) -> None:
    response = door.http.post(COMPLETIONS, content=body(model=model))

    assert error_of(response.status_code, response.content)["code"] == "model_not_found"
    assert "x-evil" not in response.headers


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../etc/passwd",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%00",
        "/v1/models/a%0d%0aX-Evil:%201",
        "/v1/models/%ff%fe",
        "/v1/models/%F0%9F%90%AB",
        "//v1/models",
        "/v1/models/" + "a" * 20_000,
        "/v1/models/%ED%A0%80",
        "/metrics/../v1/models/x",
    ],
)
def test_paths_that_lead_elsewhere(door: Gateway, path: str) -> None:
    status, headers, content = raw(door, head(f"GET {path} HTTP/1.1"))

    error_of(status, content)
    assert status == 404
    assert "x-evil" not in headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["X-Packtrain-Lane: bulk\x00"], 400),
        (["X-Packtrain-Lane: \xff\xfe"], 400),
        (["X-Packtrain-Priority: 1e3"], 400),
        (["X-Packtrain-Deterministic: perhaps"], 400),
        (["X-Packtrain-Expires-In: nan"], 400),
        (["X-Packtrain-Max-Wait: -1"], 400),
        (["Idempotency-Key: " + "k" * 257], 400),
        (["Idempotency-Key: a\rX-Evil: 1"], 400),
        (["Idempotency-Key: \xe9\xff"], 404),  # a key like others, for a model that is none
        (["X-Packtrain-Idempotency-Key: pt:job:1"], 404),
    ],
)
def test_headers_that_mean_something_else(door: Gateway, headers: list[str], status: int) -> None:
    content = body()

    got, answered, said = raw(
        door, head("POST /v1/completions HTTP/1.1", f"Content-Length: {len(content)}", *headers), content
    )

    error_of(got, said)
    assert got == status
    assert "x-evil" not in answered


def test_a_body_beyond_the_limit_is_refused_whether_it_says_its_size_or_not(door: Gateway) -> None:
    said = raw(door, head("POST /v1/completions HTTP/1.1", "Content-Length: 1000000000000"))
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    unsaid = raw(door, head("POST /v1/completions HTTP/1.1", "Transfer-Encoding: chunked"), *[chunk] * 6)

    assert [error_of(status, content)["code"] for status, _, content in (said, unsaid)] == ["body_too_large"] * 2
    assert [status for status, _, _ in (said, unsaid)] == [413, 413]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        head("POST /v1/completions HTTP/1.1", "Content-Length: -5"),
        head("POST /v1/completions HTTP/1.1", "Content-Length: " + "9" * 400),
    ],
)
def test_what_is_no_http_is_told_so(door: Gateway, sent: bytes) -> None:
    status, _, content = raw(door, sent)

    assert error_of(status, content)["code"] == "invalid_http"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"POST /v1/completions HTTP/1.1\r\n", *[b"A: b\r\n"] * 12],
        [head("POST /v1/completions HTTP/1.1", "Content-Length: 1000"), *[b" "] * 12],
        [head("POST /v1/completions HTTP/1.1", "Transfer-Encoding: chunked"), *[b"1\r\n \r\n"] * 12],
        [b""],
    ],
)
def test_a_request_that_hardly_comes_is_not_waited_for(door: Gateway, pieces: list[bytes]) -> None:
    began_s = time.monotonic()

    status, _, content = raw(door, *pieces, pause_s=0.2)

    assert error_of(status, content)["code"] == "request_too_slow"
    assert time.monotonic() - began_s < 15  # it would have gone on for ever
    assert status == 408


def test_a_large_request_on_a_slow_line_is_waited_for(door: Gateway) -> None:
    content = body(prompt="x" * 12_000)
    pieces = [content[at : at + 2000] for at in range(0, len(content), 2000)]

    status, _, said = raw(
        door, head("POST /v1/completions HTTP/1.1", f"Content-Length: {len(content)}"), *pieces, pause_s=0.3
    )

    assert status == 404
    assert error_of(status, said)["code"] == "model_not_found"


def test_web_pages_may_not_call_unless_they_are_listed(door: Gateway) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}

    preflight = door.http.options(COMPLETIONS, headers=asked)
    called = door.http.post(COMPLETIONS, content=body(), headers={"Origin": "https://evil.example"})

    assert preflight.status_code == 405
    assert called.status_code == 403
    assert not [name for name in (*preflight.headers, *called.headers) if name.startswith("access-control-")]


@pytest.mark.parametrize("method", ["BREW", "TRACE", "CONNECT", "PATCH"])
def test_methods_that_are_none(door: Gateway, method: str) -> None:
    response: httpx2.Response = door.http.request(method, "/v1/models")

    assert error_of(response.status_code, response.content)["code"] == "method_not_allowed"
