"""Shards without one: what a head is told, the first words to a port, the filter of system calls, the cache."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from packtrain.broker.errors import ModelLoadFailed
from packtrain.workers.shards import cache
from packtrain.workers.shards.hello import NoShard, check_shard, version_at
from packtrain.workers.shards.sandbox import filter_program
from packtrain.workers.shards.split import ShardPlace, Split

pytestmark = pytest.mark.unit

X86_64, AARCH64 = 0xC000003E, 0xC00000B7
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000
HELLO = struct.Struct("<QBBBx24s")


def test_a_split_names_each_shard_once_and_no_more_layers_than_there_are() -> None:
    place = ShardPlace(port=5000, layers=20, name="attic")

    with pytest.raises(ValidationError, match="two shards have one port"):
        Split(shards=(place, place))
    with pytest.raises(ModelLoadFailed, match="'m' has 19 layers, and 20 were given to shards"):
        Split(shards=(place,)).check("m", 19)
    Split(shards=(place,)).check("m", 20)
    assert str(place) == "the shard on attic"


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port of loopback where somebody answers one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        thread.join(timeout=5)


def reply(size: int = 28, version: tuple[int, int, int] = (7, 0, 0)) -> Callable[[socket.socket], None]:
    """What a shard says, in two pieces."""

    def answer(connection: socket.socket) -> None:
        assert connection.recv(33, socket.MSG_WAITALL) == struct.pack("<BQ", 14, 24) + bytes(24)
        said = HELLO.pack(size, *version, bytes(24))
        connection.sendall(said[:5])
        connection.sendall(said[5:])

    return answer


def test_a_shard_tells_its_version() -> None:
    with answering(reply(version=(7, 1, 3))) as port:
        assert version_at(port) == (7, 1, 3)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda connection: connection.recv(33, socket.MSG_WAITALL), "it hung up"),
        (lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"), "is no shard"),
        (reply(size=3), "what answers there is no shard"),
        (lambda connection: connection.recv(100, socket.MSG_WAITALL), "it probably serves another head"),
    ],
)
def test_what_is_no_free_shard_is_told_as_such(answer: Callable[[socket.socket], None], reason: str) -> None:
    with answering(answer) as port, pytest.raises(NoShard, match=reason):
        version_at(port, timeout_s=0.2)


def test_a_shard_of_another_version_is_refused_with_both() -> None:
    with (
        answering(reply(version=(6, 0, 1))) as port,
        pytest.raises(ModelLoadFailed, match=r"the shard on attic speaks version 6\.0\.1 of .* this node 7\.0\.0"),
    ):
        check_shard(ShardPlace(port=port, layers=1, name="attic"), (7, 0, 0))


def verdict(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What a filter says of a system call: the kernel's little machine, as far as it is used."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    at = value = 0
    while True:
        code, then, otherwise, operand = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("<I", data, operand)
        elif code == 0x15:
            at += then if value == operand else otherwise
        elif code == 0x35:
            at += then if value >= operand else otherwise
        else:
            assert code == 0x06
            return int(operand)


@pytest.mark.parametrize(
    ("architecture", "column", "read", "execve", "connect", "sock", "sendto"),
    [(X86_64, 0, 0, 59, 42, 41, 44), (AARCH64, 1, 63, 221, 203, 198, 206)],
)
def test_the_filter_lets_a_shard_compute_and_answer_and_do_nothing_else(
    architecture: int, column: int, read: int, execve: int, connect: int, sock: int, sendto: int
) -> None:
    program = filter_program(architecture, column)

    def said(number: int, *arguments: int) -> int:
        return verdict(program, architecture, number, *arguments)

    assert said(read) == ALLOW
    assert [said(execve), said(connect)] == [REFUSE, REFUSE]
    assert said(sock, 2, 1) == ALLOW  # TCP
    assert [said(sock, 2, 2), said(sock, 1, 1), said(sock, 10, 1), said(sock, 2, 1 + 2**32)] == [REFUSE] * 4
    assert said(sendto, 5, 1, 1, 0, 0) == ALLOW  # what `send` is
    assert [said(sendto, 5, 1, 1, 0, 1), said(sendto, 5, 1, 1, 0, 2**40)] == [REFUSE, REFUSE]
    assert verdict(program, architecture ^ 1, read) == KILL
    assert said(0x40000000 + read) == REFUSE  # the same call by its x32 number


def test_a_cache_counts_only_once_a_load_came_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "sha256"

    cache.begin(folder)
    (folder / "0011223344556677").write_bytes(b"tensor")
    cache.begin(folder)  # the first shard was killed
    assert list(folder.iterdir()) == []

    (folder / "0011223344556677").write_bytes(b"tensor")
    cache.end(folder)
    cache.begin(folder)
    assert cache.size(folder) == 6
    (folder / "8899aabbccddeeff").write_bytes(b"half")
    cache.begin(folder)  # so was the third, while it took more layers
    assert cache.size(folder) == 0


def test_caches_of_the_models_used_last_stay(tmp_path: Path) -> None:
    folders = [cache.folder_of(tmp_path, f"model {number}") for number in range(cache.MAX_MODELS + 3)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        os.utime(folder, (number, number))

    cache.sweep(tmp_path, keep={folders[0]})

    assert {*tmp_path.iterdir()} == {folders[0], *folders[-cache.MAX_MODELS + 1 :]}
    cache.sweep(tmp_path / "none", keep={folders[0]})
