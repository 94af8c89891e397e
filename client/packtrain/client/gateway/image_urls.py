"""Images by URL: fetched before a request is read, from hosts that the gateway's operator names, and from no other.

Who may say where a server fetches from may look around in its network: at metadata of a cloud, at an admin page on
loopback. So without `PACKTRAIN_HTTP_IMAGE_HOSTS` nothing is fetched, and with it

* only HTTPS to these hosts, or HTTP to those named with a scheme, at their usual ports or the ones named
* only addresses of the public internet: a name is resolved once, each address it has is looked at, and the connection
  goes to the very address that was looked at, so that a name which changes meanwhile changes nothing
* redirects, three at most, by the same rules
* so many bytes and seconds, and at most as many images as a job may have

What came stands in the request as a data: URL, and from there on it is an image like any other.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx2

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.images import MAX_IMAGE_BYTES, data_uri
from packtrain.broker.media import MAX_MEDIA, MAX_MEDIA_BYTES

#: For all images of a request together, seconds.
TIMEOUT_S = 15.0
MAX_REDIRECTS = 3
MAX_URL_CHARS = 4096
_PORTS = {"https": 443, "http": 80}
#: Behind these stand addresses of IPv4, whichever.
_TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
#: A text that begins so, and some key of these, are looked for before a request is taken apart for the URLs in it.
_REMOTE = re.compile(rb'"https?:\\?/\\?/', re.IGNORECASE)
_MARKS = (b'"image_url"', b'"input_image"', b'"image"')

#: The addresses of a host and port.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where images may come from: a host, `.example.org` for all below it, by one scheme and port."""

    host: str
    scheme: str = "https"
    port: int = 443

    def holds(self, url: SplitResult) -> bool:
        """True for a URL of this place."""
        host = (url.hostname or "").rstrip(".")
        is_there = host.endswith(self.host) if self.host.startswith(".") else host == self.host
        return is_there and url.scheme == self.scheme and (url.port or _PORTS.get(url.scheme)) == self.port


def place_of(text: str) -> Place:
    """A place as an operator names it: `images.example.org`, `.example.org`, `http://camera.example.org:8080`.

    Raises:
        ValueError
    """
    url = urlsplit(text if "//" in text else f"https://{text}")
    if url.scheme not in _PORTS or not url.hostname or url.path.strip("/") or url.query or "@" in url.netloc:
        raise ValueError(f"{text!r} names no host; write it like images.example.org or .example.org")
    return Place(url.hostname, url.scheme, url.port or _PORTS[url.scheme])


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system knows them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


class ImageUrls:
    """Fetches the images that requests name by URL.

    Args:
        places: Where from; none: nothing is fetched, and nothing is looked for.
        resolve: The addresses of a host.
        is_public: Whether an address may be fetched from.
        transport: Instead of the network.
    """

    def __init__(
        self,
        places: Sequence[Place],
        *,
        resolve: Resolve = resolve,
        is_public: Callable[[str], bool] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._places = tuple(places)
        self._resolve = resolve
        self._is_public = is_public or _is_public
        self._transport = transport

    def may_name(self, text: bytes) -> bool:
        """Whether the body of a request may name images that are to be fetched: a glance, without reading it."""
        return bool(self._places) and _REMOTE.search(text) is not None and any(mark in text for mark in _MARKS)

    async def fetch(self, urls: Sequence[str]) -> dict[str, str]:
        """Images as data: URLs, by the URLs that name them.

        Raises:
            InvalidParameter: One cannot be had, or they are too many.
        """
        if not urls:
            return {}
        if len(urls) > MAX_MEDIA:
            raise _refusal(f"the request names {len(urls)} images, at most {MAX_MEDIA} are taken")
        try:
            async with asyncio.timeout(TIMEOUT_S), self._client() as client:
                images = await asyncio.gather(*(self._fetch(client, url) for url in urls))
        except TimeoutError:
            raise _refusal(f"the images took longer than {TIMEOUT_S:g} s to come") from None
        if (size := sum(map(len, images))) > MAX_MEDIA_BYTES:
            raise _refusal(f"the images have {size} bytes together, at most {MAX_MEDIA_BYTES} are taken")
        return dict(zip(urls, map(data_uri, images), strict=True))

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            follow_redirects=False, trust_env=False, timeout=TIMEOUT_S, transport=self._transport,
            headers={"User-Agent": "packtrain", "Accept": "image/*", "Accept-Encoding": "identity"},
        )  # fmt: skip

    async def _fetch(self, client: httpx2.AsyncClient, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            parts = self._checked(url)
            address = await self._address(parts)
            target, headers = _pinned(parts, address)
            try:
                async with client.stream(
                    "GET", target, headers=headers, extensions={"sni_hostname": parts.hostname}
                ) as answer:
                    if answer.is_redirect:
                        url = urljoin(url, answer.headers.get("location", ""))
                        continue
                    if answer.status_code != 200:
                        raise _refusal(f"{parts.hostname} answers {answer.status_code} for an image")
                    return await _bounded(answer, parts)
            except httpx2.HTTPError as error:
                raise _refusal(f"an image of {parts.hostname} does not come ({type(error).__name__})") from error
        raise _refusal(f"an image is behind more than {MAX_REDIRECTS} redirects")

    def _checked(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            is_allowed = len(url) <= MAX_URL_CHARS and any(place.holds(parts) for place in self._places)
            has_password = "@" in parts.netloc
        except ValueError:  # of a port, or of brackets
            raise _refusal("a URL of an image is none") from None
        if has_password or not is_allowed:
            raise _refusal(
                f"images are not fetched from {parts.scheme}://{(parts.hostname or '')[:100]}, which the operator of "
                "this gateway has not named"
            )
        return parts

    async def _address(self, parts: SplitResult) -> str:
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        try:
            found = await self._resolve(host, port)
        except OSError as error:
            raise _refusal(f"{host} cannot be found ({error.strerror or error})") from error
        if not found or not all(map(self._is_public, found)):
            raise _refusal(f"{host} is no host of the public internet")
        return found[0]


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    if any(found in network for network in _TRANSLATED if network.version == found.version):
        return False
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (inner is None or inner.is_global)


def _pinned(parts: SplitResult, address: str) -> tuple[str, dict[str, str]]:
    """A URL that goes to this address, and the header that says to which host."""
    host = f"[{address}]" if ":" in address else address
    netloc = f"{host}:{parts.port}" if parts.port else host
    named = parts.netloc
    return parts._replace(netloc=netloc, fragment="").geturl(), {"Host": named}


async def _bounded(answer: httpx2.Response, parts: SplitResult) -> bytes:
    data = bytearray()
    async for piece in answer.aiter_raw():
        data += piece
        if len(data) > MAX_IMAGE_BYTES:
            raise _refusal(f"an image of {parts.hostname} has over {MAX_IMAGE_BYTES} bytes")
    return bytes(data)


def urls_in(body: object) -> list[str]:
    """The images that a request names by URL, each once."""
    named = (holder[key] for holder, key in _named(body))
    return list(dict.fromkeys(str(url) for url in named if _is_remote(url)))


def put_in(body: object, images: Mapping[str, str]) -> None:
    """Have a request hold the images that it names."""
    for holder, key in _named(body):
        holder[key] = images.get(str(holder[key]), holder[key])


def _named(body: object) -> Iterator[tuple[MutableMapping[str, Any], str]]:
    """Where images are named: the object and the key that hold the URL, in any of the APIs."""
    todo = [body]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += value
        elif isinstance(value, dict):
            todo += value.values()
            kind, image = value.get("type"), value.get("image_url")
            if kind in ("image_url", "input_image") and isinstance(image, str):
                yield value, "image_url"
            elif kind == "image_url" and isinstance(image, dict) and isinstance(image.get("url"), str):
                yield image, "url"
            source = value.get("source")
            if kind == "image" and isinstance(source, dict) and source.get("type") == "url":
                yield source, "url"


def _is_remote(url: object) -> bool:
    return isinstance(url, str) and url.lower().startswith(("http://", "https://"))


def _refusal(what: str) -> InvalidParameter:
    return InvalidParameter(f"{what}; send the image itself, as a data: URL", field="image_url")
