"""The pairing service on a real broker: who is let in, and that it withstands who is not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
from redis import Redis
from typer.testing import CliRunner

from packtrain.broker import keys
from packtrain.broker.errors import SetupError
from packtrain.broker.invites import TRIES_PER_USE, Invites, PairingPlace
from packtrain.broker.server import BrokerServer
from packtrain.client.cli.main import app
from packtrain.client.joining import http_server
from packtrain.client.joining.guest import join
from packtrain.client.joining.http_server import PairingServer
from packtrain.client.joining.messages import Joined, place_of
from packtrain.client.joining.service import SESSION_S, Pairing
from packtrain.client.joining.tokens import parse_code, parse_token
from tests.conftest import immortal_keys
from tests.support.fleets import eventually

pytestmark = pytest.mark.contract

URL = "redis://:the-password@127.0.0.1:6390/0"


class Head:
    """A pairing service with a clock that tests move."""

    def __init__(self, redis: Redis) -> None:
        self.now = 0.0
        self.invites = Invites(redis)
        self.server = PairingServer(
            "127.0.0.1", 0, Pairing(self.invites, lambda _node: place_of(URL, "home"), lambda: self.now)
        )
        self.port = self.server.server_address[1]

    def join(self, secret: str, invite: str = "") -> Joined:
        return join(["127.0.0.1"], self.port, secret=secret, invite=invite, node="laptop")


@pytest.fixture
def head(redis: Redis) -> Iterator[Head]:
    with running(Head(redis)) as head:
        yield head


@contextmanager
def running(head: Head) -> Iterator[Head]:
    thread = threading.Thread(target=head.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield head
    finally:
        head.server.shutdown()
        head.server.server_close()
        thread.join()


def test_the_code_lets_one_machine_in(head: Head) -> None:
    invite = head.invites.create(uses=1, lives_s=60)

    assert head.join(invite.code) == Joined(URL, "home", "")
    with pytest.raises(SetupError, match="no invitation is open"):
        head.join(invite.code)


def test_the_token_does_too_and_another_invitation_leaves_it_good(head: Head) -> None:
    invite = head.invites.create(uses=2, lives_s=60)
    head.invites.create(uses=1, lives_s=60)

    assert head.join(invite.secret, invite.id) == Joined(URL, "home", "")
    with pytest.raises(SetupError, match="the code is wrong"):
        head.join(invite.code)


def test_after_a_few_wrong_codes_the_right_one_is_refused_too(head: Head) -> None:
    invite = head.invites.create(uses=1, lives_s=60)
    wrong = f"{(int(invite.code) + 1) % 10**9:09}"
    for _ in range(TRIES_PER_USE):
        with pytest.raises(SetupError, match="the code is wrong"):
            head.join(wrong)

    with pytest.raises(SetupError, match="too many wrong codes"):
        head.join(invite.code)


def test_an_invitation_ends_with_its_time_and_leaves_no_key(head: Head, redis: Redis) -> None:
    invite = head.invites.create(uses=1, lives_s=60)
    assert 0 < redis.ttl(keys.invite(invite.id)) <= 60
    redis.pexpire(keys.invite(invite.id), 1)
    eventually(lambda: head.invites.find(invite.id) is None, "the end of its time")

    with pytest.raises(SetupError, match="no invitation is open"):
        head.join(invite.secret, invite.id)
    assert not head.invites.take_try(invite)
    assert not redis.exists(keys.invite(invite.id))
    assert immortal_keys(redis) == set()


def test_a_session_that_took_too_long_is_over(redis: Redis) -> None:
    head = Head(redis)
    ticks = iter([0.0, SESSION_S + 1])
    head.server.pairing = Pairing(head.invites, lambda _node: place_of(URL, "home"), lambda: next(ticks))
    with running(head):
        invite = head.invites.create(uses=1, lives_s=60)

        with pytest.raises(SetupError, match="took too long"):
            head.join(invite.code)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"POST /hello HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /hello HTTP/1.0\r\nContent-Length: 99999999\r\n\r\n",
        b"POST /hello HTTP/1.0\r\nContent-Length: -1\r\n\r\n",
        b'POST /hello HTTP/1.0\r\nContent-Length: 17\r\n\r\n{"element": "zz"}',
        b'POST /confirm HTTP/1.0\r\nContent-Length: 33\r\n\r\n{"session": "x", "sealed": "abcd"}',
        b"POST /etc/passwd HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\r\n\r\n",
    ],
    ids=["get", "empty", "huge", "negative", "no hex", "no session", "path", "tls"],
)
def test_nonsense_is_refused_and_costs_no_try(head: Head, redis: Redis, request_: bytes) -> None:
    invite = head.invites.create(uses=1, lives_s=60)

    with socket.create_connection(("127.0.0.1", head.port), 10) as connection:
        connection.sendall(request_)
        answer = connection.makefile("rb").read()

    assert b" 200 " not in answer
    assert redis.hget(keys.invite(invite.id), "tries") == str(TRIES_PER_USE)
    assert head.join(invite.code) == Joined(URL, "home", "")


def test_connections_that_say_nothing_keep_nobody_out_for_long(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_S", 0.3)
    invite = head.invites.create(uses=1, lives_s=60)
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", head.port), 10)) for _ in range(20)]
        for connection in silent:  # each is hung up on, those beyond the limit at once
            assert connection.recv(1) == b""

        assert head.join(invite.code) == Joined(URL, "home", "")


def test_invite_prints_what_lets_a_machine_in(head: Head, broker: BrokerServer) -> None:
    invite = partial(CliRunner(env={"PACKTRAIN_URL": broker.url}).invoke, app, ["invite", "--json"])
    refused = invite()
    assert isinstance(refused.exception, SetupError)
    assert "packtrain up --listen" in str(refused.exception)
    head.invites.announce(PairingPlace(name="home", addresses=("127.0.0.1",), port=head.port))

    said = json.loads(invite().stdout)

    token = parse_token(said["token"])
    assert join(token.addresses, token.port, secret=token.secret, invite=token.invite, node="n2") == Joined(
        URL, "home", ""
    )
    said = json.loads(invite().stdout)
    assert head.join(parse_code(said["code"])) == Joined(URL, "home", "")


def test_where_machines_join_is_known_while_the_service_lives(redis: Redis) -> None:
    invites = Invites(redis)
    assert invites.place() is None
    place = PairingPlace(name="home", addresses=("10.0.0.1",), port=6391, pid=7)

    invites.announce(place)

    assert invites.place() == place
    assert 0 < redis.pttl(keys.PAIRING) <= keys.PAIRING_TTL_MS
