"""What the HTTP transport decides without a network: which gateway, which error, poll or feed."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import httpx2
import pytest

from packtrain.broker.chat import CallDelta
from packtrain.broker.chunks import Event
from packtrain.broker.errors import (
    BrokerUnavailable,
    InvalidRequest,
    JobFailed,
    PacktrainError,
    PromptTooLong,
    SetupError,
    TryLater,
)
from packtrain.broker.ids import JobId
from packtrain.broker.pieces import Logprob, TokenLogprob
from packtrain.broker.states import JobState
from packtrain.client.gateway.native_form import native_body
from packtrain.client.http_errors import Lost, answer, away
from packtrain.client.http_feed import MAX_IDLE_S, Feed, Feeds, Parser, feed_cursors, pays
from packtrain.client.http_options import parse_options
from packtrain.client.native_wire import BEAT_S, read_event, write_event
from packtrain.client.openai import fault_of
from packtrain.client.opening import open_transport
from packtrain.client.reading import BLOCK_S

pytestmark = pytest.mark.unit

URL = "http://gateway:8080"
JOB, OTHER = JobId("a" * 32), JobId("b" * 32)

EVENTS = [
    Event(JOB, "1-0", "Hé", 0, (1, 2)),
    Event(JOB, "2-0", reasoning="hm\n\n", index=2, tokens=(3,), calls=(CallDelta(0, '{"a":', "call_1", "f"),)),
    Event(
        OTHER, "2-0", "x", 0, (7,),
        logprobs=(TokenLogprob(token=7, text="x", logprob=-0.5, top=(Logprob(token=8, text="y", logprob=-2.25),)),),
    ),
    Event(JOB, "3-0", end=JobState.SUCCEEDED),
]  # fmt: skip


def test_events_cross_the_wire_unchanged() -> None:
    assert [read_event(write_event(event)) for event in EVENTS] == EVENTS


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_feed_is_understood_in_whatever_pieces_it_arrives(size: int) -> None:
    text = b": begun\n\n" + b"".join(b"data: " + write_event(event) + b"\n\n" for event in EVENTS) + b": waiting\n\n"
    parser = Parser()
    found = [parser.take(text[at : at + size]) for at in range(0, len(text), size)]

    assert [event for events in found if events for event in events] == EVENTS
    assert (found[-1] is not None) == (size < 10_000 or bool(EVENTS))
    assert not parser.has_failed


def test_a_feed_that_fails_gives_what_it_had_before() -> None:
    parser = Parser()
    events = parser.take(b"data: " + write_event(EVENTS[0]) + b'\n\nevent: error\ndata: {"error":{}}\n\n')

    assert events == EVENTS[:1]
    assert parser.has_failed


@pytest.mark.parametrize(
    ("cursors", "block_s", "expected"),
    [
        (["1-0"], BLOCK_S, True),
        (["1-0", "2-0"], BLOCK_S, True),
        (["1-0", "0"], BLOCK_S, False),  # a job that has just come: the set of jobs changes
        (["1-0"], 0, False),  # a look
        (["1-0"], BEAT_S / 2, False),  # a deadline is near, and a feed would keep silent past it
    ],
)
def test_a_feed_is_for_jobs_that_have_all_begun_to_speak(cursors: list[str], block_s: float, expected: bool) -> None:
    after = {JobId(f"{number:032x}"): cursor for number, cursor in enumerate(cursors)}

    assert pays(after, block_s) is expected


def test_a_reader_finds_its_feed_only_where_it_left_it() -> None:
    feeds: Feeds[str, None] = Feeds()
    feed = Feed("first", None, feed_cursors({JOB: "1-0", OTHER: "1-0"}))
    assert feed.took([EVENTS[1]])
    feeds.put(feed, now=0)

    assert feeds.take({JOB: "1-0", OTHER: "1-0"}) is None
    assert feeds.take({JOB: "2-0"}) is None
    assert feeds.take({OTHER: "1-0", JOB: "2-0"}) is feed
    assert feeds.take({OTHER: "1-0", JOB: "2-0"}) is None
    assert feed.took([EVENTS[3]])
    assert feed.cursors.after == {OTHER: "1-0"}
    assert not feed.took([Event(OTHER, "9-0", end=JobState.FAILED)])


def test_feeds_that_nobody_comes_back_for_are_given_out_to_be_closed() -> None:
    feeds: Feeds[str, None] = Feeds()
    for number in range(3):
        feeds.put(Feed(f"{number}", None, feed_cursors({JOB: f"{number}-0"})), now=float(number))
    twin = Feed("twin", None, feed_cursors({JOB: "2-0"}))
    replaced = feeds.put(twin, now=3.0)

    assert replaced is not None
    assert replaced.response == "2"
    assert [feed.response for feed in feeds.take_stale(MAX_IDLE_S + 1.5)] == ["0", "1"]
    assert [feed.response for feed in feeds.take_all()] == ["twin"]


def test_a_proxy_that_holds_feeds_back_is_noticed_once() -> None:
    feeds: Feeds[str, None] = Feeds()
    heard, silent = (Feed(name, None, feed_cursors({JOB: "1-0"})) for name in ("heard", "silent"))
    heard.parser.take(b": begun\n\n")
    for feed, error in ((heard, httpx2.ReadTimeout("")), (silent, httpx2.ReadError(""))):
        feeds.failed(feed, error)
        assert feeds.pay({JOB: "1-0"}, BLOCK_S)
    feeds.failed(silent, httpx2.ReadTimeout(""))
    assert not feeds.pay({JOB: "1-0"}, BLOCK_S)


def test_an_error_of_the_fleet_arrives_as_it_was_raised() -> None:
    error = PromptTooLong(model="m", num_tokens=9, limit=5)
    fault = fault_of(error)
    body = json.dumps(native_body(fault))

    with pytest.raises(PromptTooLong) as caught:
        answer(URL, fault.status, body.encode())
    assert caught.value.to_wire() == error.to_wire()
    assert set(json.loads(body)["error"]) >= {"message", "type", "param", "code"}


def said(code: str) -> bytes:
    return json.dumps({"error": {"message": "so it is", "type": "t", "param": None, "code": code, "data": {}}}).encode()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "invalid_api_key", SetupError),
        (403, "not_permitted", SetupError),
        (404, "unknown_url", SetupError),
        (413, "body_too_large", InvalidRequest),
        (429, "rate_limit_exceeded", TryLater),
        (503, "unavailable", TryLater),
        (500, "internal_error", PacktrainError),
        (500, "job_failed", JobFailed),
    ],
)
def test_what_only_the_gateway_knows_is_an_error_that_says_what_to_do(
    status: int, code: str, kind: type[PacktrainError]
) -> None:
    with pytest.raises(PacktrainError, match="so it is") as caught:
        answer(URL, status, said(code))
    assert type(caught.value) is kind


def test_what_is_not_there_is_none() -> None:
    assert answer(URL, 404, said("unknown_job"), absent="unknown_job") is None
    assert answer(URL, 200, b"[]") == b"[]"


@pytest.mark.parametrize(("status", "kind"), [(502, Lost), (503, Lost), (504, Lost), (404, SetupError), (200, None)])
def test_a_proxy_may_come_back_and_another_server_will_not(status: int, kind: type[Exception] | None) -> None:
    if kind:
        with pytest.raises(kind):
            answer(URL, status, b"<html>nginx</html>")
    else:
        assert answer(URL, status, b"x") == b"x"
    assert "no gateway answers at http://gateway:8080 (Gone)" in str(away(URL, RuntimeError("Gone.")))
    assert isinstance(away(URL, RuntimeError()), BrokerUnavailable)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host:8080", "http://host:8080"),
        ("https://ai.example/", "https://ai.example"),
        ("http://host:8080/v1", "http://host:8080"),
        ("https://ai.example/fleet/v1/", "https://ai.example/fleet"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_a_gateway_is_named_as_people_have_it_at_hand(url: str, expected: str) -> None:
    assert parse_options(url).url == expected


@pytest.mark.parametrize("url", ["http://", "http://host:port", "http://host?x=1", "http://[::1", "http://host:0"])
def test_a_url_that_can_be_no_gateway_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="is no gateway"):
        parse_options(url)


def test_a_password_in_the_url_is_refused_without_showing_it() -> None:
    with pytest.raises(SetupError, match="PACKTRAIN_API_KEY") as caught:
        parse_options("http://me:secret@host")
    assert "secret" not in str(caught.value)
    with pytest.raises(SetupError, match="without line ends"):
        parse_options(URL, "pt-key\r\nX-Evil: 1")
    assert "pt-key" not in repr(parse_options(URL, "pt-key"))


def test_proxies_are_for_hosts_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "near.example")

    def proxy(url: str) -> Any:
        return parse_options(url).client()["proxy"]

    assert proxy("http://far.example") == "http://proxy:3128"
    assert [proxy(f"http://{host}:8080") for host in ("127.0.0.1", "[::1]", "localhost", "near.example")] == [None] * 4


def test_certificates_come_from_the_system_or_from_a_file(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing")
    with pytest.raises(SetupError, match="PACKTRAIN_CA"):
        parse_options("https://host", ca=empty).client()
    with pytest.raises(SetupError, match="PACKTRAIN_CA"):
        parse_options("https://host", ca=tmp_path / "none").client()
    found = ssl.get_default_verify_paths().cafile
    assert parse_options("https://host").client()["verify"] is True
    if found and Path(found).exists():
        assert isinstance(parse_options("https://host", ca=Path(found)).client()["verify"], ssl.SSLContext)


def test_the_environment_names_gateway_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKTRAIN_URL", URL)
    monkeypatch.setenv("PACKTRAIN_API_KEY", "pt-of-the-environment")
    for given, expected in ((None, "pt-of-the-environment"), ("pt-mine", "pt-mine")):
        transport: Any = open_transport(api_key=given)
        assert transport.url == URL
        assert transport.options.api_key == expected
        transport.close()
