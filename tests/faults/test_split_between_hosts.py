"""A split between hosts: what strangers and listeners on the network get of it, and what a dead cable means."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest

from packtrain.workers.shards.split import ShardPlace, Split
from packtrain.workers.tunnel.certificate import new_identity
from packtrain.workers.tunnel.forward import DEAD_S
from tests.support.fleets import eventually
from tests.support.hosts import Host, hosts, why_not
from tests.support.listeners import SNIFFER, STRANGER
from tests.support.split_head import alone, head
from tests.support.split_hosts import end_on, shard_on
from tests.support.tiny_model import write_tiny_model

pytestmark = [pytest.mark.faults, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]

SHARD_PORT, EXIT_PORT = 50_100, 50_101


@dataclass
class Scene:
    """A head's host and a shard's, a tunnel between them, and somebody else on the same switch."""

    near: Host
    far: Host
    stranger: Host
    split: Split
    heard: Path  # on the cable
    heard_inside: Path  # on the shard's loopback


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """Ready for a head."""
    with hosts("near", "far", "stranger") as (near, far, stranger):
        ours, theirs = new_identity(folder / "near", "near"), new_identity(folder / "far", "far")
        shard_on(far, SHARD_PORT, folder / "shard.log", numerics="deterministic")
        inner, outer = ("127.0.0.1", SHARD_PORT), (far.address, EXIT_PORT)
        end_on(far, "exit", theirs, ours, at=outer, to=inner, log=folder / "exit.log")
        port = end_on(near, "entry", ours, theirs, at=("127.0.0.1", 0), to=outer, log=folder / "entry.log")
        heard, inside = folder / "cable", folder / "loopback"
        for interface, notes in (("eth0", heard), ("lo", inside)):
            far.start([sys.executable, "-c", SNIFFER, interface, str(notes)], {}, folder / "sniffer.log")
            eventually(notes.exists, "a listener")
        yield Scene(near, far, stranger, Split(shards=(ShardPlace(port=port, layers=3),)), heard, inside)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Of six layers."""
    return write_tiny_model(tmp_path / "m.gguf", n_layer=6, kind=gguf.GGMLQuantizationType.Q8_0)


def test_a_listener_reads_nothing_and_a_stranger_reaches_nothing(tmp_path: Path, model: Path) -> None:
    with scene(tmp_path) as it:
        with head(model, it.split, "deterministic", on=it.near) as far:
            assert far.take(7) == alone(model, "deterministic", 6)
        told = tmp_path / "stranger.log"
        for port in (SHARD_PORT, EXIT_PORT):
            asked = it.stranger.start([sys.executable, "-c", STRANGER, it.far.address, str(port)], {}, told)
            asked.wait(timeout=30)
        eventually(lambda: len(told.read_text().splitlines()) == 2, "the stranger's words")

        from_shard, from_tunnel = told.read_text().splitlines()
        assert from_shard == "error ConnectionRefusedError"  # it listens on loopback only
        assert "07000000" not in from_tunnel  # no word of a shard: an alert of TLS, or an end
        assert b"blk.3" in it.heard_inside.read_bytes()  # the names of tensors, where nothing is encrypted
        assert len(it.heard.read_bytes()) > 100_000
        assert b"blk." not in it.heard.read_bytes()


def test_a_cable_that_is_cut_in_mid_generation_ends_the_head_in_time(tmp_path: Path, model: Path) -> None:
    with scene(tmp_path) as it:
        with head(model, it.split, "deterministic", on=it.near) as far:
            assert len(far.take(4)) == 4
            it.far.cut()
            begin = time.monotonic()
            far.take(10)
            assert far.process.wait(timeout=60) == -signal.SIGABRT
            took = time.monotonic() - begin
        it.far.heal()
        with head(model, it.split, "deterministic", on=it.near) as again:
            assert again.take(4) == alone(model, "deterministic", 3)

    assert took < DEAD_S + 8
