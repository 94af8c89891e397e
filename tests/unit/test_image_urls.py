"""Images by URL: what is fetched, and above all what is not."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError
from starlette.requests import Request

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.images import MAX_IMAGE_BYTES
from packtrain.broker.media import MAX_MEDIA
from packtrain.client.gateway.body import read_json
from packtrain.client.gateway.image_urls import ImageUrls, place_of, put_in, urls_in
from packtrain.client.gateway.settings import GatewaySettings
from packtrain.client.openai import parse_call
from tests.support.pictures import png

pytestmark = pytest.mark.unit

PICTURE = png(8, 8)
PUBLIC = "93.184.216.34"
Answer = Callable[[httpx2.Request], httpx2.Response]


def found(data: bytes) -> httpx2.Response:
    return httpx2.Response(200, stream=httpx2.ByteStream(data))


class Web:
    """A network of one server, and who was asked for what."""

    def __init__(self, answer: Answer | None = None, addresses: dict[str, Sequence[str]] | None = None) -> None:
        self.answer = answer or (lambda request: found(PICTURE))
        self.addresses = addresses or {}
        self.asked: list[str] = []
        self.hosts: list[str] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        return self.addresses.get(host, [PUBLIC])

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(str(request.url))
        self.hosts.append(request.headers["host"])
        return self.answer(request)

    def inlined(self, body: Any, *hosts: str) -> Any:
        urls = ImageUrls(
            [place_of(host) for host in hosts], resolve=self.resolve, transport=httpx2.MockTransport(self.handle)
        )
        text = json.dumps(body).encode()
        found = json.loads(text)
        if urls.may_name(text):
            put_in(found, asyncio.run(urls.fetch(urls_in(found))))
        return found


def chat(url: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def test_an_image_comes_from_the_address_that_was_looked_at_under_the_name_that_was_given() -> None:
    web = Web()

    body = web.inlined(chat("https://images.example.org/a.png?x=1#part"), "images.example.org")

    assert web.asked == [f"https://{PUBLIC}/a.png?x=1"]
    assert web.hosts == ["images.example.org"]
    (spec,) = parse_call("/v1/chat/completions", body).specs
    assert spec.media[0].data == PICTURE


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": "https://images.example.org/a.png"},
        {"type": "input_image", "image_url": "https://images.example.org/a.png"},
        {"type": "image", "source": {"type": "url", "url": "https://images.example.org/a.png"}},
    ],
)
def test_every_api_names_images_in_its_own_way(part: dict[str, Any]) -> None:
    web = Web()

    body = web.inlined({"input": [{"content": [part, part]}]}, ".example.org")

    assert len(web.asked) == 1  # the same one twice is fetched once
    assert json.dumps(body).count("data:image/png;base64,") == 2


@pytest.mark.parametrize(
    "url",
    [
        "http://images.example.org/a.png",
        "https://images.example.org:8443/a.png",
        "https://example.org/a.png",
        "https://evil-images.example.org.evil.net/a.png",
        "https://images.example.org@evil.net/a.png",
        "https://me:pw@images.example.org/a.png",
        "https://169.254.169.254/latest",
        "https://[::1]/a.png",
        "https://127.0.0.1/a.png",
        "https://images.example.org:99999/a.png",
    ],
)
def test_only_named_hosts_are_asked(url: str) -> None:
    web = Web()

    with pytest.raises(InvalidParameter, match="data: URL"):
        web.inlined(chat(url), "images.example.org")
    assert web.asked == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1",
     "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b:1::1"],
)  # fmt: skip
def test_a_host_with_any_address_of_the_inner_network_is_not_asked(address: str) -> None:
    web = Web(addresses={"images.example.org": [PUBLIC, address]})

    with pytest.raises(InvalidParameter, match="no host of the public internet"):
        web.inlined(chat("https://images.example.org/a.png"), "images.example.org")
    assert web.asked == []


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/", "https://127.0.0.1/", "file:///etc/passwd", "//evil.net/"]
)
def test_a_redirect_leads_nowhere_else(target: str) -> None:
    web = Web(lambda _: httpx2.Response(302, headers={"location": target}))

    with pytest.raises(InvalidParameter, match="has not named"):
        web.inlined(chat("https://images.example.org/a.png"), "images.example.org")
    assert len(web.asked) == 1


def test_a_redirect_within_the_named_hosts_is_followed_but_not_for_ever() -> None:
    def once(request: httpx2.Request) -> httpx2.Response:
        if "again" in str(request.url):
            return found(PICTURE)
        return httpx2.Response(301, headers={"location": "/again.png"})

    assert "data:image/png" in json.dumps(Web(once).inlined(chat("https://a.example.org/a.png"), ".example.org"))
    turning = Web(lambda _: httpx2.Response(302, headers={"location": "/a.png"}))
    with pytest.raises(InvalidParameter, match="more than 3 redirects"):
        turning.inlined(chat("https://a.example.org/a.png"), ".example.org")
    assert len(turning.asked) == 4


def test_too_much_and_errors_are_refused() -> None:
    large = Web(lambda _: found(bytes(MAX_IMAGE_BYTES + 1)))
    gone = Web(lambda _: httpx2.Response(404))

    def breaks(_: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    with pytest.raises(InvalidParameter, match="has over"):
        large.inlined(chat("https://a.example.org/"), ".example.org")
    with pytest.raises(InvalidParameter, match="answers 404"):
        gone.inlined(chat("https://a.example.org/"), ".example.org")
    with pytest.raises(InvalidParameter, match="does not come"):
        Web(breaks).inlined(chat("https://a.example.org/"), ".example.org")
    many = {"input": [chat(f"https://a.example.org/{number}") for number in range(MAX_MEDIA + 1)]}
    with pytest.raises(InvalidParameter, match="17 images"):
        Web().inlined(many, ".example.org")


def test_what_is_no_image_is_refused_as_if_it_had_been_sent() -> None:
    body = Web(lambda _: found(b"<html>")).inlined(chat("https://a.example.org/"), ".example.org")

    with pytest.raises(InvalidParameter, match="the image cannot be read"):
        parse_call("/v1/chat/completions", body)


def test_without_hosts_nothing_is_fetched_and_nothing_is_touched() -> None:
    web = Web()

    assert web.inlined(chat("https://a.example.org/")) == chat("https://a.example.org/")
    assert web.inlined({"text": "http image_url"}, ".example.org") == {"text": "http image_url"}
    assert web.asked == []


def test_a_body_is_taken_apart_only_where_a_text_in_it_begins_as_a_url() -> None:
    urls = ImageUrls([place_of("a.example.org")])

    assert urls.may_name(json.dumps(chat("HTTPS://a.example.org/")).encode())
    assert urls.may_name(json.dumps(chat("http://a.example.org/")).replace("/", r"\/").encode())
    assert not urls.may_name(json.dumps(chat("data:image/png;base64,http") | {"user": "see http://x"}).encode())
    assert not ImageUrls([]).may_name(json.dumps(chat("https://a.example.org/")).encode())


class OwnProcess:
    """As `Readers`, in this one: what is to be done and what comes of it are pickled."""

    def __init__(self) -> None:
        self.num_runs = 0

    async def run(self, work: Any) -> Any:
        self.num_runs += 1
        return pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(work))()))


def contents(body: dict[str, Any]) -> str:
    return json.dumps(body["messages"])


@pytest.mark.parametrize(("pad", "num_runs"), [(0, 0), (5_000_000, 2)])
def test_a_request_is_read_with_its_images_in_it_a_large_one_elsewhere(pad: int, num_runs: int) -> None:
    web, readers = Web(), OwnProcess()
    images = ImageUrls(
        [place_of("images.example.org")], resolve=web.resolve, transport=httpx2.MockTransport(web.handle)
    )
    door: Any = SimpleNamespace(images=images, readers=readers, settings=GatewaySettings())
    text = json.dumps(chat("https://images.example.org/a.png") | {"user": "x" * pad}).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": text, "more_body": False}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    found = asyncio.run(read_json(request, door, contents))

    assert "data:image/png;base64," in found
    assert "https:" not in found
    assert (len(web.asked), readers.num_runs) == (1, num_runs)


@pytest.mark.parametrize("host", ["", "https://", "a.example.org/path", "ftp://a.example.org", "x@y"])
def test_what_names_no_host_stops_the_gateway(host: str) -> None:
    with pytest.raises((ValidationError, ValueError)):
        place_of(host)


def test_hosts_are_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKTRAIN_HTTP_IMAGE_HOSTS", "images.example.org, http://camera.example.org:8080")

    hosts = GatewaySettings().image_hosts

    assert [place_of(host).port for host in hosts] == [443, 8080]
