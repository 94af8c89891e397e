"""Real gateways for tests: the process as users run it, on a port of its own before a fleet, and a client of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.support.fleets import eventually

_SERVING = re.compile(r"Serving at (https?://\S+)")


@dataclass(frozen=True, slots=True)
class Sent:
    """One event of a stream, or a comment in it."""

    data: str = ""
    event: str = ""
    comment: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """What its data says."""
        found = json.loads(self.data)
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway, and a client of it that sends no key."""

    url: str  # without /v1
    process: subprocess.Popen[bytes]
    log: Path
    http: httpx2.Client

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        """Send a JSON body."""
        return self.http.post(path, json=body, headers=headers)

    def answer(self, path: str, body: Any, **headers: str) -> dict[str, Any]:
        """The JSON of a response that has to be a good one."""
        response = self.post(path, body, **headers)
        assert response.status_code == 200, response.text
        return dict(response.json())

    @contextmanager
    def streaming(self, path: str, body: dict[str, Any], **headers: str) -> Iterator[Iterator[Sent]]:
        """The events of a stream as they come; whoever leaves early hangs up."""
        with self.http.stream("POST", path, json={"stream": True, **body}, headers=headers) as response:
            if response.status_code != 200:
                response.read()
            assert response.status_code == 200, response.text
            yield parse_stream(response.iter_lines())

    def events(self, path: str, body: dict[str, Any], **headers: str) -> list[Sent]:
        """All events of a stream, comments left out."""
        with self.streaming(path, body, **headers) as events:
            return [event for event in events if not event.comment]

    def chunks(self, path: str, body: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
        """The data of all events of an OpenAI stream, which has to end with [DONE]."""
        *events, last = self.events(path, body, **headers)
        assert last.data == "[DONE]"
        return [event.json for event in events]


def parse_stream(lines: Iterable[str]) -> Iterator[Sent]:
    """Server-sent events from their lines, strictly: an event is one `data:` line, with one `event:` line at most."""
    event = data = ""
    for line in lines:
        name, _, value = line.partition(": ")
        match name:
            case "event":
                event = value
            case "data":
                assert not data, f"two data lines in one event: {data!r}, {value!r}"
                data = value
            case ":" | "":
                if value:
                    yield Sent(comment=value)
                elif data:
                    yield Sent(data, event)
                    event = data = ""
            case _:
                raise AssertionError(f"{line!r} is no line of a stream of events")
    assert not data, f"the stream broke off within an event: {data!r}"


@contextmanager
def gateway(broker_url: str, folder: Path, **env: str) -> Iterator[Gateway]:
    """A gateway before the fleet at `broker_url`.

    Args:
        folder: Where its log goes, and the files and batches of its clients.
        env: Its settings: `PACKTRAIN_HTTP_<NAME>`.
    """
    log = folder / "gateway.log"
    settings = {
        "PACKTRAIN_HTTP_PORT": "0", "PACKTRAIN_LOG_LEVEL": "INFO", "PACKTRAIN_URL": broker_url,
        "PACKTRAIN_FILES": str(folder / "files"), **env,
    }  # fmt: skip
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "packtrain.client.gateway.gateway_main"],
            env=os.environ | settings,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
        )

    def where() -> str | None:
        assert process.poll() is None, f"the gateway has ended:\n{log.read_text()}"
        found = _SERVING.search(log.read_text())
        return found[1] if found else None

    try:
        url = eventually(where, f"a gateway that serves; see {log}")
        # No proxy of the environment, and no pool that a test with many streams could exhaust.
        limits = httpx2.Limits(max_connections=None)
        with httpx2.Client(base_url=url, timeout=60, limits=limits, trust_env=False) as http:
            yield Gateway(url, process, log, http)
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
