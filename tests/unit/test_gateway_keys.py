"""Access by API keys, with a broker that tests play by hand."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as NoConnection
from starlette.requests import Request

from packtrain.broker.api_keys import ApiKey, ApiKeys, Charge, Short, digest_of
from packtrain.broker.errors import BrokerUnavailable
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.failures import Refused
from packtrain.client.gateway.guesses import USUAL_ANSWER, guessed_tokens
from packtrain.client.gateway.keys import FRESH_S, SOON_S, KeyAccess
from packtrain.client.gateway.settings import GatewaySettings, check_reach, is_loopback
from tests.support.factories import spec

pytestmark = pytest.mark.unit


class Kept:
    """What `ApiKeys` would find in the broker."""

    def __init__(self, *keys: ApiKey) -> None:
        self.keys = list(keys)
        self.reads = 0
        self.is_away = False
        self.found: Charge | Short = Charge("r", 0, 0)
        self.ended: list[int | None] = []

    def all(self) -> list[ApiKey]:
        self.reads += 1
        if self.is_away:
            raise NoConnection("gone")
        return self.keys

    def admit(self, key: ApiKey, request: str, tokens: int) -> Charge | Short:
        return self.found

    def account(self, key: ApiKey, charge: Charge, used: int | None) -> bool:
        self.ended.append(used)
        return True


def key(name: str = "anna", **fields: Any) -> ApiKey:
    return ApiKey(name=name, digest=digest_of(f"pt-{name}"), **fields)


def asked(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost"), *raw]})


class Clock:
    now_s = 0.0


def access(kept: Kept, clock: type[Clock] = Clock, **settings: Any) -> KeyAccess:
    return KeyAccess(cast(ApiKeys, kept), GatewaySettings(**settings), "redis://x", lambda: clock.now_s)


def refusal(call: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        asyncio.run(call)
    return caught.value.fault.status, caught.value.fault.code


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer pt-anna"},
        {"authorization": "bearer  pt-anna "},
        {"x_api_key": "pt-anna"},
        {"authorization": "Bearer ", "x_api_key": "pt-anna"},
    ],
)
def test_a_key_is_taken_from_either_header(headers: dict[str, str]) -> None:
    found = asyncio.run(access(Kept(key(models=("a",), is_admin=True))).caller(asked(**headers)))

    assert found == Caller("anna", key().id, True, frozenset({"a"}))


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer pt-ann"}, {"authorization": "pt-anna"}, {"authorization": "Bearer \xff\xfe"}],
)
def test_anything_else_is_none(headers: dict[str, str]) -> None:
    assert refusal(access(Kept(key())).caller(asked(**headers))) == (401, "invalid_api_key")


def test_a_key_of_another_version_lets_nobody_in() -> None:
    assert refusal(access(Kept(ApiKey(name="odd", digest=""))).caller(asked())) == (401, "invalid_api_key")


def test_keys_are_read_every_two_seconds_and_once_more_for_one_that_may_be_new() -> None:
    class Now(Clock):
        pass

    kept = Kept(key())

    async def play() -> None:
        door = access(kept, Now)
        for _ in range(5):
            await door.caller(asked(x_api_key="pt-anna"))
        assert kept.reads == 1
        kept.keys.append(key("ben"))
        Now.now_s = SOON_S + 0.1
        assert (await door.caller(asked(x_api_key="pt-ben"))).user == "ben"
        assert kept.reads == 2
        for guess in range(50):  # guesses cost the broker nothing
            with pytest.raises(Refused):
                await door.caller(asked(x_api_key=f"pt-{guess}"))
        assert kept.reads == 2
        kept.keys.clear()
        Now.now_s += FRESH_S + 0.1
        assert (await door.caller(asked(x_api_key="pt-ben"))).user is None

    asyncio.run(play())


def test_without_the_broker_nobody_gets_in() -> None:
    kept = Kept()
    kept.is_away = True

    with pytest.raises(BrokerUnavailable):
        asyncio.run(access(kept).caller(asked()))


def test_who_waits_while_the_broker_is_tried_in_vain_does_not_try_anew() -> None:
    kept = Kept(key())
    kept.is_away = True

    async def play() -> None:
        door = access(kept)
        calls = [door.caller(asked(x_api_key="pt-anna")) for _ in range(20)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for each in found} == {BrokerUnavailable}
        assert kept.reads == 1  # one try may take half a minute
        kept.is_away = False
        assert (await door.caller(asked(x_api_key="pt-anna"))).user == "anna"

    asyncio.run(play())


def test_a_request_of_a_limited_key_is_counted_once_it_ends_whatever_the_broker_says() -> None:
    kept = Kept(key(concurrent=1))

    async def play() -> None:
        door = access(kept)
        caller = await door.caller(asked(x_api_key="pt-anna"))
        await (await door.admit(caller, [spec()])).end(12)

    asyncio.run(play())

    assert kept.ended == [12]


@pytest.mark.parametrize(
    ("short", "retry_after_s"), [(Short("concurrent", 1, 0), 1), (Short("tokens", 90, 12_001), 13)]
)
def test_over_a_limit_the_refusal_says_when_to_come_back(short: Short, retry_after_s: int) -> None:
    kept = Kept(key(concurrent=1, tokens_per_minute=100))
    kept.found = short

    with pytest.raises(Refused) as caught:
        asyncio.run(access(kept).admit(Caller("anna", key().id), [spec()]))

    assert (caught.value.fault.status, caught.value.fault.retry_after_s) == (429, retry_after_s)


def test_a_key_that_was_revoked_a_moment_ago_hands_in_nothing_any_more() -> None:
    assert refusal(access(Kept(key("ben"))).admit(Caller("anna", "anna"), [spec()])) == (401, "invalid_api_key")


def test_tokens_are_guessed_from_the_prompt_and_the_longest_answer() -> None:
    asked_for = [spec("x" * 400, params={"max_tokens": 10}), spec("x" * 40), spec("x" * 40, kind="embed")]

    assert guessed_tokens(asked_for) == 110 + (10 + USUAL_ANSWER) + 10


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.5", False), ("myhost", False), ("localhost.evil.example", False)],
)  # fmt: skip
def test_beyond_loopback_a_key_is_needed(host: str, is_ours: bool) -> None:
    assert is_loopback(host) is is_ours
    check_reach(host, has_keys=True)
    if is_ours:
        check_reach(host, has_keys=False)
