"""Model files over a real connection: what a file server gives to whom, and what a fetch makes of it."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from packtrain.broker.beats import NodeBeat
from packtrain.broker.errors import ModelFetchFailed
from packtrain.broker.ids import ModelId
from packtrain.broker.registry import MemoryRegistry
from packtrain.broker.settings import Settings
from packtrain.workers.files import exchange as exchange_module
from packtrain.workers.files import fetch as fetch_module
from packtrain.workers.files.exchange import Exchange
from packtrain.workers.files.fetch import Fetch
from packtrain.workers.files.part_file import ABANDONED_S, PartFile, remove_abandoned
from packtrain.workers.files.secret import FleetSecret
from packtrain.workers.files.server import MAX_CONNECTIONS, FileServer
from packtrain.workers.files.source import NodeSource, RemotePart, SourceAway
from packtrain.workers.files.tokens import sign
from packtrain.workers.node_catalog import ScriptedCatalog
from tests.support.factories import node_beat
from tests.support.fleets import eventually

pytestmark = pytest.mark.integration

TINY = ModelId("tiny")
CONTENT = bytes(range(256)) * 4096  # 1 MiB


@dataclass
class Nodes:
    """A node n1 that serves, and one that fetches into `here`."""

    there: Path
    here: Path
    secret: str = "s" * 64
    rate: int | None = None
    known: str = ""  # what the fetching node takes for the secret
    free: int = 2**40
    models: dict[ModelId, list[Path]] = field(default_factory=dict)
    projectors: dict[ModelId, Path] = field(default_factory=dict)
    server: FileServer | None = None

    def offer(self, model: str = TINY, *contents: bytes) -> list[Path]:
        paths = [self.there / f"{model}.{number}" for number in range(len(contents) or 1)]
        for path, content in zip(paths, contents or (CONTENT,), strict=True):
            path.write_bytes(content)
        self.models[ModelId(model)] = paths
        return paths

    def serve(self) -> None:
        self.server = FileServer(
            "127.0.0.1", 0, node="n1", parts=self.models.get, projector=self.projectors.get,
            secret=FleetSecret(lambda: self.secret), clock_s=time.time, hashes=self.there / "hashes.json",
            rate=self.rate,
        )  # fmt: skip
        self.server.start()

    def stop(self) -> None:
        if self.server:
            self.server.close()
            self.server = None

    def beat(self) -> NodeBeat | None:
        server = self.server
        return node_beat("n1", files_url=f"http://127.0.0.1:{server.port}", loopback="us") if server else None

    def source(self) -> NodeSource:
        secret = FleetSecret(lambda: self.known or self.secret)
        return NodeSource("n1", self.beat, secret=secret, loopback="us", clock_s=time.time)

    def fetch(self, model: str = TINY, source: NodeSource | None = None) -> Fetch:
        return Fetch(
            ModelId(model), source or self.source(), self.here, suffix=".gguf", hashes=self.here / "hashes.json",
            space=lambda folder, fetch: self.free,
        )  # fmt: skip

    def ask(self, method: str, path: str, token: str | None = None, **headers: str) -> tuple[HTTPResponse, bytes]:
        assert self.server
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        token = sign(self.secret, "n1", path, time.time()) if token is None else token
        connection.request(method, path, headers={"Authorization": token, **headers})
        with connection.getresponse() as reply:
            body = reply.read()
        connection.close()
        return reply, body


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setattr(fetch_module, "RETRY_S", (0.02,))
    nodes = Nodes(tmp_path / "there", tmp_path / "here")
    nodes.there.mkdir()
    nodes.here.mkdir()
    yield nodes
    nodes.stop()


def finish(fetch: Fetch) -> Fetch:
    eventually(lambda: fetch.is_over, "the end of the fetch")
    return fetch


def part_path(nodes: Nodes, content: bytes = CONTENT, name: str = "tiny.gguf") -> Path:
    return nodes.here / f"{name}.part-{hashlib.sha256(content).hexdigest()[:16]}"


def test_a_projector_comes_with_its_model_under_a_name_by_which_it_is_found(nodes: Nodes) -> None:
    nodes.offer(TINY, CONTENT, b"second")
    eyes = nodes.there / "any-name.gguf"
    eyes.write_bytes(b"eyes")
    nodes.projectors[TINY] = eyes
    nodes.serve()

    fetch = finish(nodes.fetch())

    assert fetch.failure == ""
    assert (nodes.here / "tiny-mmproj.gguf").read_bytes() == b"eyes"
    assert (nodes.here / "tiny-00001-of-00002.gguf").read_bytes() == CONTENT
    assert fetch.total == len(CONTENT) + len(b"second") + len(b"eyes")
    # A node that does not know of projectors reads the number of parts alone.
    head, _ = nodes.ask("HEAD", "/models/tiny/0")
    assert head.headers["Packtrain-Parts"] == "2"


# --- the server ---------------------------------------------------------------------------------------------------


def test_a_file_comes_whole_or_by_ranges_with_its_hash(nodes: Nodes) -> None:
    nodes.offer(TINY, CONTENT, b"second")
    nodes.serve()

    head, nothing = nodes.ask("HEAD", "/models/tiny/0")
    _, whole = nodes.ask("GET", "/models/tiny/0")
    middle, some = nodes.ask("GET", "/models/tiny/0", Range="bytes=1000-1999")
    _, second = nodes.ask("GET", "/models/tiny/1")

    assert (head.status, nothing, head.headers["Content-Length"]) == (200, b"", str(len(CONTENT)))
    assert head.headers["ETag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    assert head.headers["Packtrain-Parts"] == "2"
    assert whole == CONTENT
    assert (middle.status, some) == (206, CONTENT[1000:2000])
    assert middle.headers["Content-Range"] == f"bytes 1000-1999/{len(CONTENT)}"
    assert second == b"second"
    assert nodes.ask("GET", "/models/tiny/0", Range="bytes=9999999-")[0].status == 416
    assert nodes.ask("GET", "/models/tiny/0", **{"If-Match": '"other"'})[0].status == 412


def test_without_a_token_of_the_fleet_nothing_is_told(nodes: Nodes) -> None:
    nodes.offer()
    nodes.serve()
    of_another_node = sign(nodes.secret, "n2", "/models/tiny/0", time.time())
    of_another_file = sign(nodes.secret, "n1", "/models/tiny/1", time.time())
    of_yesterday = sign(nodes.secret, "n1", "/models/tiny/0", time.time() - 86_400)

    for token in ("", "Packtrain 9999999999." + "0" * 64, "Bearer x", of_another_node, of_another_file, of_yesterday):
        assert nodes.ask("GET", "/models/tiny/0", token)[0].status == 403
        assert nodes.ask("HEAD", "/models/tiny/0", token)[0].status == 403
        assert nodes.ask("GET", "/models/unknown/0", token)[0].status == 403


PATHS_TO_NOTHING = (
    "/", "/models", "/models/tiny", "/models/tiny/", "/models/tiny/1", "/models/tiny/-1", "/models/tiny/00000",
    "/models/unknown/0", "/models/../secret/0", "/models/..%2fsecret/0", "/models/%2e%2e/0", "/models/.hidden/0",
    "/models/tiny/0/..", "/models/tiny/0?x", "/models/TINY/0", "/models//etc/passwd/0", "/models/tiny.0/0",
    "/models/hashes.json/0", "/secret",
)  # fmt: skip


def test_only_ids_of_the_catalog_lead_to_files(nodes: Nodes) -> None:
    nodes.offer()
    (nodes.there.parent / "secret").write_bytes(b"private")
    nodes.serve()

    replies = {path: nodes.ask("GET", path) for path in PATHS_TO_NOTHING}

    assert {path: reply.status for path, (reply, _) in replies.items()} == dict.fromkeys(PATHS_TO_NOTHING, 404)
    assert not any(b"private" in body for _, body in replies.values())


def test_a_new_secret_of_the_fleet_is_noticed(nodes: Nodes) -> None:
    nodes.offer()
    nodes.serve()
    assert nodes.ask("HEAD", "/models/tiny/0")[0].status == 200

    nodes.secret = "t" * 64  # as after a broker that lost its data

    assert nodes.ask("HEAD", "/models/tiny/0")[0].status == 200


def test_one_connection_too_many_is_sent_away_and_the_next_served(nodes: Nodes) -> None:
    nodes.offer()
    nodes.serve()
    assert nodes.server
    idle = [socket.create_connection(("127.0.0.1", nodes.server.port)) for _ in range(MAX_CONNECTIONS)]
    for connection in idle:
        connection.sendall(b"GET ")

    with socket.create_connection(("127.0.0.1", nodes.server.port), timeout=10) as extra:
        said = extra.recv(100)
    for connection in idle:
        connection.close()

    assert said.startswith(b"HTTP/1.1 503 ")
    eventually(lambda: _status(nodes) == 200, "a free place")


def _status(nodes: Nodes) -> int:
    try:
        return nodes.ask("HEAD", "/models/tiny/0")[0].status
    except OSError:
        return 0


def test_a_limit_holds_for_all_readers_together(nodes: Nodes) -> None:
    nodes.rate = 2 * len(CONTENT)
    nodes.offer()
    nodes.serve()
    nodes.ask("HEAD", "/models/tiny/0")  # hashed
    begun = time.monotonic()

    readers = [threading.Thread(target=nodes.ask, args=("GET", "/models/tiny/0")) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()

    assert time.monotonic() - begun > 0.95  # 3 MiB, of which 1 MiB is the burst, at 2 MiB/s


def test_a_node_that_listens_everywhere_follows_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ["http://10.0.0.1:5", "http://10.0.0.1:5", "http://10.0.0.2:5"]
    monkeypatch.setattr(exchange_module, "ADDRESS_S", 0.01)
    monkeypatch.setattr(exchange_module, "files_url", lambda *_: addresses.pop(0) if addresses else "http://10.0.0.2:5")
    settings = Settings(home=tmp_path, url="redis://127.0.0.1:1", files_address="0.0.0.0:0")
    exchange = Exchange(settings, MemoryRegistry(lambda: 0), ScriptedCatalog(settings), lambda: 0)

    assert exchange.url == "http://10.0.0.1:5"
    exchange.serve()
    eventually(lambda: exchange.url == "http://10.0.0.2:5", "its new address")
    exchange.close()


# --- the fetch ----------------------------------------------------------------------------------------------------


def test_a_fetched_file_is_that_of_the_source_under_its_id(nodes: Nodes) -> None:
    nodes.offer()
    nodes.serve()

    fetch = finish(nodes.fetch())

    assert fetch.failure == ""
    assert (fetch.done, fetch.total) == (len(CONTENT), len(CONTENT))
    assert (nodes.here / "tiny.gguf").read_bytes() == CONTENT
    assert sorted(path.name for path in nodes.here.iterdir()) == ["hashes.json", "tiny.gguf"]


def test_all_parts_of_a_split_model_come_with_names_that_belong_together(nodes: Nodes) -> None:
    contents = [CONTENT, b"two", b"three"]
    nodes.offer(TINY, *contents)
    nodes.serve()

    assert finish(nodes.fetch()).failure == ""

    names = [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert [(nodes.here / name).read_bytes() for name in names] == contents


def test_a_fetch_goes_on_where_an_earlier_one_ended(nodes: Nodes) -> None:
    nodes.offer()
    nodes.serve()
    part_path(nodes).write_bytes(CONTENT[:700_000])

    source, asked = nodes.source(), list[int]()
    read = source.read

    def noting(model: ModelId, number: int, start: int, part: RemotePart) -> AbstractContextManager[HTTPResponse]:
        asked.append(start)
        return read(model, number, start, part)

    source.read = noting  # type: ignore[method-assign, assignment]

    assert finish(nodes.fetch(source=source)).failure == ""
    assert asked == [700_000]
    assert (nodes.here / "tiny.gguf").read_bytes() == CONTENT


def test_a_fetch_outlives_its_source(nodes: Nodes) -> None:
    nodes.rate = len(CONTENT)
    nodes.offer()
    nodes.serve()
    fetch = nodes.fetch()
    eventually(lambda: fetch.done > 400_000, "some bytes")

    nodes.stop()
    eventually(lambda: fetch.trouble == "n1 is gone", "the fetch to notice")
    came = fetch.done
    nodes.rate = None
    nodes.serve()  # at another port

    assert finish(fetch).failure == ""
    assert came > 400_000
    assert (nodes.here / "tiny.gguf").read_bytes() == CONTENT


def test_a_source_that_answers_but_gives_no_byte_shows_no_sign_of_life(nodes: Nodes) -> None:
    nodes.offer()
    nodes.serve()
    part_path(nodes).write_bytes(CONTENT[:500_000])
    tries = 0

    def cut_off(*_: object) -> object:
        nonlocal tries
        tries += 1
        raise SourceAway("n1 has cut the transfer off")

    source = nodes.source()
    source.read = cut_off  # type: ignore[method-assign, assignment]
    fetch = nodes.fetch(source=source)
    eventually(lambda: tries >= 2, "two tries")
    signs, tries = fetch.signs, 0
    eventually(lambda: tries >= 3, "three more")

    assert fetch.signs == signs
    fetch.cancel()
    finish(fetch)


def test_a_flipped_byte_is_refused_and_does_not_stay(nodes: Nodes) -> None:
    nodes.offer()
    nodes.serve()
    part_path(nodes).write_bytes(CONTENT[:1000] + b"\xff" + CONTENT[1001:5000])

    assert "has the hash" in finish(nodes.fetch()).failure
    assert list(nodes.here.iterdir()) == []
    assert finish(nodes.fetch()).failure == ""


def test_a_file_that_changes_at_the_source_begins_anew(nodes: Nodes) -> None:
    nodes.rate = len(CONTENT)
    (path,) = nodes.offer()
    nodes.serve()
    fetch = nodes.fetch()
    eventually(lambda: fetch.done > 300_000, "some bytes")

    nodes.stop()
    path.write_bytes(CONTENT[::-1])
    nodes.rate = None
    nodes.serve()

    assert finish(fetch).failure == ""
    assert (nodes.here / "tiny.gguf").read_bytes() == CONTENT[::-1]
    assert not part_path(nodes).exists()


def test_a_disk_without_room_is_left_alone(nodes: Nodes) -> None:
    nodes.offer()
    nodes.serve()
    nodes.free = 500 * 2**20  # the file would fit, but 1 GiB is to stay free

    assert "make room" in finish(nodes.fetch()).failure
    assert list(nodes.here.iterdir()) == []


def test_a_token_that_the_source_refuses_ends_the_fetch(nodes: Nodes) -> None:
    nodes.offer()
    nodes.serve()
    nodes.known = "another fleet"

    assert "refuses our token" in finish(nodes.fetch()).failure


def test_a_source_that_has_lost_the_file_ends_the_fetch(nodes: Nodes) -> None:
    nodes.serve()

    assert "has no file" in finish(nodes.fetch()).failure


def test_a_file_of_the_operator_is_never_replaced(nodes: Nodes) -> None:
    nodes.offer()
    nodes.serve()
    (nodes.here / "tiny.gguf").write_bytes(b"mine")

    assert "is another file" in finish(nodes.fetch()).failure
    assert (nodes.here / "tiny.gguf").read_bytes() == b"mine"


@pytest.mark.parametrize("model", ["a-", "tiny-00001-of-00002"])
def test_an_id_that_no_file_name_gives_is_not_fetched(nodes: Nodes, model: str) -> None:
    nodes.offer(model)
    nodes.serve()

    assert "copy it by hand" in finish(nodes.fetch(model)).failure


def test_a_cancelled_fetch_ends_soon_and_leaves_what_came(nodes: Nodes) -> None:
    nodes.rate = len(CONTENT) // 4
    nodes.offer()
    nodes.serve()
    fetch = nodes.fetch()
    eventually(lambda: fetch.done > 200_000, "some bytes")

    fetch.cancel()

    assert finish(fetch).failure == "cancelled"
    assert part_path(nodes).stat().st_size == fetch.done


def test_two_fetches_of_one_file_write_it_once(nodes: Nodes) -> None:
    nodes.rate = 2 * len(CONTENT)
    nodes.offer()
    nodes.serve()

    fetches = [nodes.fetch(), nodes.fetch()]
    sizes = [_max_part(nodes, fetch) for fetch in fetches]

    assert [finish(fetch).failure for fetch in fetches] == ["", ""]
    assert sizes == [1, 1]
    assert (nodes.here / "tiny.gguf").read_bytes() == CONTENT


def _max_part(nodes: Nodes, fetch: Fetch) -> int:
    """The most part files that were seen at once until the end."""
    seen = 1
    while not fetch.is_over:
        seen = max(seen, len(list(nodes.here.glob("*.part-*"))))
        time.sleep(0.01)
    return seen


def test_a_disk_that_fills_on_the_way_gets_back_what_came(tmp_path: Path) -> None:
    part = tmp_path / f"a.gguf.part-{'0' * 16}"
    part.symlink_to("/dev/full")

    with PartFile(tmp_path / "a.gguf", 10, "0" * 64) as file, pytest.raises(ModelFetchFailed, match="is full"):
        file.write(b"some")

    assert list(tmp_path.iterdir()) == []


def test_part_files_that_nobody_comes_back_for_are_removed_after_a_week(nodes: Nodes) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    held = PartFile(nodes.here / "held.gguf", 10, digest)
    left = part_path(nodes, name="left.gguf")
    for path in (held.path, left):
        path.write_bytes(b"some")
    now = time.time()

    remove_abandoned(nodes.here, now)
    assert left.exists()
    remove_abandoned(nodes.here, now + ABANDONED_S + 10)

    assert [path.exists() for path in (held.path, left)] == [True, False]
    held.close()
