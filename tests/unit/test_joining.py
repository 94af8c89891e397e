"""Codes, tokens, and the exchange that only those who know the code come through."""

from __future__ import annotations

from pathlib import Path

import pytest

from packtrain.broker.errors import InvalidParameter, SetupError
from packtrain.broker.settings import Settings
from packtrain.client.joining.exchange import Exchange, Key, WrongSecret
from packtrain.client.joining.messages import place_of
from packtrain.client.joining.tokens import Token, parse_code, parse_token

pytestmark = pytest.mark.unit


def keys_of(guest_secret: str, head_secret: str, invite: str = "", head_invite: str = "") -> tuple[Key, Key]:
    guest, head = Exchange("guest", guest_secret, invite), Exchange("head", head_secret, head_invite)
    return guest.key(head.element), head.key(guest.element)


def test_who_knows_the_code_reads_what_the_other_side_sealed() -> None:
    guest, head = keys_of("482915306", "482915306")

    assert head.open("guest", guest.seal("guest", b"it is me")) == b"it is me"
    assert guest.open("head", head.seal("head", b"come in")) == b"come in"


@pytest.mark.parametrize(
    ("secret", "invite"), [("482915307", ""), ("482915306", "another"), ("", "")], ids=["code", "invitation", "empty"]
)
def test_who_does_not_know_it_reads_nothing(secret: str, invite: str) -> None:
    guest, head = keys_of(secret, "482915306", invite)

    with pytest.raises(WrongSecret):
        head.open("guest", guest.seal("guest", b"it is me"))
    with pytest.raises(WrongSecret):
        guest.open("head", head.seal("head", b"come in"))


def test_what_one_side_sealed_cannot_be_sent_back_to_it() -> None:
    guest, head = keys_of("1", "1")

    with pytest.raises(WrongSecret):
        guest.open("head", guest.seal("guest", b"it is me"))
    sealed = bytearray(head.seal("head", b"come in"))
    sealed[3] ^= 1
    with pytest.raises(WrongSecret):
        guest.open("head", bytes(sealed))


@pytest.mark.parametrize(
    "element", [b"", b"A", b"A" + bytes(32), b"B" + b"\xff" * 32, b"A" + b"\xff" * 31, b"A" + b"\xff" * 32]
)
def test_an_element_that_is_none_is_refused(element: bytes) -> None:
    with pytest.raises(WrongSecret):
        Exchange("head", "482915306", "").key(element)


def test_an_element_cannot_be_sent_back() -> None:
    guest = Exchange("guest", "482915306", "")

    with pytest.raises(WrongSecret):
        guest.key(b"B" + guest.element[1:])


def test_a_token_says_again_what_it_said() -> None:
    token = Token(invite="517ea32b", secret="b2" * 16, addresses=("10.0.0.1", "fd00::1"), port=6391)

    assert parse_token(f" {token}\n") == token


@pytest.mark.parametrize("text", ["", "pt1-", "482-915-306", "pt1-eyJpbnZpdGUiOiIyZmUw", "pt1-ümlaut", "x" * 10_000])
def test_a_token_that_was_cut_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="copy the whole line"):
        parse_token(text)


@pytest.mark.parametrize("text", ["", "482-915-30", "482-915-3066", "482-915-30x", "٤٨٢٩١٥٣٠٦"])
def test_a_code_with_other_than_nine_digits_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="9 digits"):
        parse_code(text)


def test_a_broker_on_loopback_is_where_the_head_is() -> None:
    place = place_of("redis://:p%40ss@127.0.0.1:6390/0", "home")

    assert (place.host, place.port, place.password) == ("", 6390, "p@ss")
    assert place_of("rediss://me:x@redis.example:6380/1", "home").host == "redis.example"


def test_a_machine_that_joined_knows_its_fleet(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, node="n1", url="")
    with pytest.raises(SetupError, match="packtrain node"):
        settings.broker_url()

    settings.joined_file.write_text('{"url": "redis://:x@10.0.0.1:6390/0"}')
    assert settings.broker_url() == "redis://:x@10.0.0.1:6390/0"
    settings.fleet_file.write_text('{"url": "redis://:y@127.0.0.1:6390/0"}')  # `up` runs here now

    assert settings.broker_url() == "redis://:y@127.0.0.1:6390/0"


def test_a_broker_in_a_container_is_told_of_by_the_address_of_its_host() -> None:
    place = place_of("redis://:pw@broker:6379/0", "home", "192.168.1.5:6390")

    assert (place.host, place.port, place.password) == ("192.168.1.5", 6390, "pw")
