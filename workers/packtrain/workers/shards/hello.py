"""Asking a port whether a shard answers there: the first words of llama.cpp's RPC protocol, in Python.

llama.cpp's own client ends its process where nobody listens, where the other side speaks another version, and waits for
ever behind a shard that serves another head, for a shard serves one at a time and lets the others stand in its backlog.
So a head asks first. It hangs up afterwards, which leaves the shard free for llama.cpp.
"""

from __future__ import annotations

import socket
import struct

from packtrain.broker.errors import ModelLoadFailed
from packtrain.workers.shards.split import HOST, ShardPlace

_HELLO = 14  # RPC_CMD_HELLO, which "must be always 14"
_CAPS_BYTES = 24  # of a transport other than TCP; none
_REQUEST = struct.pack("<BQ", _HELLO, _CAPS_BYTES) + bytes(_CAPS_BYTES)
_REPLY = struct.Struct(f"<QBBBx{_CAPS_BYTES}s")
#: A shard that is free answers within a round trip.
TIMEOUT_S = 5.0

Version = tuple[int, int, int]


class NoShard(Exception):
    """Why no shard can be had there, without a remedy."""


def version_at(port: int, *, timeout_s: float = TIMEOUT_S) -> Version:
    """The version of the protocol that a shard speaks. Blocks for a round trip, or `timeout_s`.

    Raises:
        NoShard: Nobody listens, it is no shard, or it serves another head.
    """
    reply = b""
    try:
        with socket.create_connection((HOST, port), timeout=timeout_s) as connection:
            connection.sendall(_REQUEST)
            while len(reply) < _REPLY.size:
                if not (piece := connection.recv(_REPLY.size - len(reply))):
                    break
                reply += piece
    except TimeoutError:
        raise NoShard(f"it did not answer within {timeout_s:g} s; it probably serves another head") from None
    except OSError as error:
        raise NoShard(f"nobody answers there ({error.strerror or error})") from error
    if len(reply) < _REPLY.size:
        raise NoShard("it hung up, so it is no shard, or its way is cut")
    size, major, minor, patch, _ = _REPLY.unpack(reply)
    if size != _REPLY.size - 8:
        raise NoShard("what answers there is no shard")
    return major, minor, patch


def check_shard(place: ShardPlace, ours: Version, *, timeout_s: float = TIMEOUT_S) -> None:
    """See that a shard can be used by this process.

    Args:
        ours: The version that our llama.cpp speaks.

    Raises:
        ModelLoadFailed: It cannot; the message names it.
    """
    try:
        theirs = version_at(place.port, timeout_s=timeout_s)
    except NoShard as reason:
        raise ModelLoadFailed(f"{place} cannot be used: {reason}; see to its node, or plan without it") from reason
    if theirs != ours:
        said, own = (".".join(map(str, version)) for version in (theirs, ours))
        raise ModelLoadFailed(
            f"{place} speaks version {said} of llama.cpp's RPC, this node {own}; install the same version of packtrain "
            "on both"
        )
