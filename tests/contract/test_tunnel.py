"""A tunnel between two ends that know each other, and what strangers and listeners get of it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from packtrain.broker.errors import ModelLoadFailed
from packtrain.workers.tunnel.certificate import Identity, new_identity
from packtrain.workers.tunnel.process import TunnelProcess
from tests.support.fleets import eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.tunnels import end

pytestmark = pytest.mark.contract

SECRET = b"hidden states of a prompt " * 40


class Echo:
    """A server of this machine that sends back what it gets, and notes it."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.server.getsockname()[1])
        self.num_connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                self.num_connections += 1
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)


@dataclass
class Tunnel:
    """Both ends, with a link between them."""

    echo: Echo
    entry: TunnelProcess
    exit: TunnelProcess
    link: TcpProxy
    head: Identity
    shard: Identity


@contextmanager
def tunnel(folder: Path) -> Iterator[Tunnel]:
    """One that leads to an echo."""
    head, shard = (new_identity(folder / name, name) for name in ("head", "shard"))
    with ExitStack() as stack:
        echo = Echo()
        stack.callback(echo.server.close)
        far = end("exit", shard, head, echo.port)
        stack.callback(far.close)
        link = stack.enter_context(TcpProxy(far.port))
        near = end("entry", head, shard, link.port)
        stack.callback(near.close)
        yield Tunnel(echo, near, far, link, head, shard)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """Between two tests nothing is under way in it."""
    with tunnel(tmp_path_factory.mktemp("tunnel")) as made:
        yield made


def read(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or what came before the end."""
    with connection.makefile("rb") as stream:
        return stream.read(size)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has ended it, without a byte."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_bytes_go_through_both_ways_and_nobody_on_the_link_reads_them(one: Tunnel) -> None:
    with socket.create_connection(("127.0.0.1", one.entry.port), timeout=10) as connection:
        connection.sendall(SECRET)
        assert read(connection, len(SECRET)) == SECRET

    seen = bytes(one.link.seen)
    assert len(seen) > 2 * len(SECRET)
    assert b"hidden" not in seen
    assert b"shard" not in seen  # in TLS 1.3 not even whose certificates these are


def test_megabytes_come_whole_and_their_end_too(one: Tunnel) -> None:
    data = bytes(range(256)) * 4 * 1024 * 8  # 8 MiB
    with socket.create_connection(("127.0.0.1", one.entry.port), timeout=30) as connection:
        threading.Thread(target=connection.sendall, args=(data,), daemon=True).start()
        assert read(connection, len(data)) == data


def test_a_stranger_reaches_nothing_behind_it(one: Tunnel, tmp_path: Path) -> None:
    stranger = new_identity(tmp_path, "head")  # who takes the head's name, too
    before = one.echo.num_connections
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with_key = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with_key.check_hostname, with_key.verify_mode = False, ssl.CERT_NONE
    with_key.load_cert_chain(stranger.certificate_file, stranger.key_file)

    def gets(tls: ssl.SSLContext) -> bytes:
        try:
            with (
                socket.create_connection(("127.0.0.1", one.exit.port), timeout=10) as plain,
                tls.wrap_socket(plain) as connection,
            ):
                connection.sendall(SECRET)
                return connection.recv(1)
        except (ssl.SSLError, ConnectionError):
            return b""

    assert [gets(context), gets(with_key)] == [b"", b""]
    with socket.create_connection(("127.0.0.1", one.exit.port), timeout=15) as plain:
        plain.sendall(b"\x0e\x18\0\0\0\0\0\0\0" + bytes(24))  # llama.cpp's hello, not encrypted
        assert b"\x07\0\0" not in read(plain, 100)
    assert one.echo.num_connections == before


def test_a_head_sends_nothing_to_whoever_takes_the_shards_place(one: Tunnel, tmp_path: Path) -> None:
    impostor = new_identity(tmp_path, "shard")
    with ExitStack() as stack:
        echo = Echo()
        stack.callback(echo.server.close)
        false_end = end("exit", impostor, one.head, echo.port)
        stack.callback(false_end.close)
        entry = end("entry", one.head, one.shard, false_end.port)
        stack.callback(entry.close)
        with socket.create_connection(("127.0.0.1", entry.port), timeout=10) as connection:
            assert is_closed(connection)
        refused = "CERTIFICATE_VERIFY_FAILED"
        eventually(lambda: refused in entry.said.upper().replace(" ", "_"), "the entry to say why it hung up")
        assert echo.num_connections == 0


def test_what_one_side_ends_is_over_on_the_other(tmp_path: Path) -> None:
    with tunnel(tmp_path) as made:
        with socket.create_connection(("127.0.0.1", made.entry.port), timeout=10) as connection:
            connection.sendall(b"x")
            assert read(connection, 1) == b"x"
            made.link.cut()
            assert is_closed(connection)
        with socket.create_connection(("127.0.0.1", made.entry.port), timeout=10) as connection:
            connection.sendall(b"x")
            assert read(connection, 1) == b"x"
            made.exit.close()
            assert is_closed(connection)


def test_an_end_that_cannot_listen_says_so(one: Tunnel) -> None:
    with pytest.raises(ModelLoadFailed, match=f"cannot listen at 127.0.0.1:{one.exit.port}"):
        end("exit", one.shard, one.head, 1, port=one.exit.port)
