"""A model over real shards on loopback: the same bits as alone, and what the death of a shard means."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gguf
import psutil
import pytest

from packtrain.broker.errors import ModelLoadFailed
from packtrain.broker.fields import Numerics
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.backends.llama_cpp_params import RemoteLayers
from packtrain.workers.backends.llama_cpp_rpc import PROTOCOL, check_is_split
from packtrain.workers.shards.hello import NoShard, version_at
from packtrain.workers.shards.process import ShardProcess
from packtrain.workers.shards.split import ShardPlace, Split
from packtrain.workers.tunnel.certificate import new_identity
from tests.support.split_head import alone, head
from tests.support.tcp_proxy import TcpProxy
from tests.support.tiny_model import write_tiny_model
from tests.support.tunnels import end

pytestmark = [pytest.mark.contract, pytest.mark.skipif(sys.platform != "linux", reason="a split needs Linux")]

N_LAYER = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of six layers that is batched in deterministic numerics."""
    path = tmp_path_factory.mktemp("split") / "m.gguf"
    return write_tiny_model(path, n_layer=N_LAYER, kind=gguf.GGMLQuantizationType.Q8_0)


@contextmanager
def shards(*caches: Path | None, numerics: Numerics = "deterministic", memory: int = 0) -> Iterator[list[ShardProcess]]:
    """One for each folder, ready."""
    with ExitStack() as stack:
        made = []
        for cache in caches:
            shard = ShardProcess(cache_folder=cache, n_threads=1, numerics=numerics, memory_bytes=memory)
            stack.callback(shard.close)
            made.append(shard)
        for shard in made:
            shard.wait()
        yield made


def split_over(made: list[ShardProcess], *layers: int) -> Split:
    """The last layers of a model on these shards."""
    return Split(shards=tuple(ShardPlace(port=s.port, layers=n) for s, n in zip(made, layers, strict=True)))


@pytest.fixture(scope="module")
def two_shards() -> Iterator[list[ShardProcess]]:
    """Free between two tests."""
    with shards(None, None) as made:
        yield made


def test_a_model_over_two_shards_computes_the_bits_of_the_same_model_alone(
    tiny: Path, two_shards: list[ShardProcess], tmp_path: Path
) -> None:
    unquantised = write_tiny_model(tmp_path / "m.gguf", n_layer=N_LAYER)
    cases = [(tiny, "batched", (2, 2)), (unquantised, "serial", (1, 5))]
    for path, recipe, layers in cases:
        with head(path, split_over(two_shards, *layers), "deterministic") as far:
            computed = far.take(13)

        assert computed == alone(path, "deterministic", 12)
        assert computed[0].logits == recipe  # the test at its load holds over shards, too


def test_a_shard_serves_one_head_at_a_time_and_is_free_when_that_is_killed(
    tiny: Path, two_shards: list[ShardProcess]
) -> None:
    port = two_shards[0].port

    assert version_at(port) == PROTOCOL  # and speaks the version that heads expect
    with head(tiny, split_over(two_shards, 2, 2), "deterministic") as far:
        assert len(far.take(2)) == 2
        assert two_shards[0].is_taken
        with pytest.raises(NoShard, match="probably serves another head"):
            version_at(port, timeout_s=0.5)
        far.process.kill()
        far.process.wait()
    assert [version_at(shard.port) for shard in two_shards] == [PROTOCOL, PROTOCOL]


def test_a_shard_that_is_killed_ends_its_head_and_nothing_else(tiny: Path) -> None:
    with shards(None, None) as (one, two), head(tiny, split_over([one, two], 2, 2), "deterministic") as far:
        assert len(far.take(3)) == 3
        os.kill(two.pid, signal.SIGKILL)
        far.take(10)

        assert far.process.wait(timeout=30) == -signal.SIGABRT
        assert one.exit_code() is None
        assert version_at(one.port) == PROTOCOL  # free for the next head


def test_a_cut_link_ends_the_head(tiny: Path, two_shards: list[ShardProcess]) -> None:
    with TcpProxy(two_shards[0].port) as link:
        split = Split(shards=(ShardPlace(port=link.port, layers=3),))
        with head(tiny, split, "deterministic") as far:
            assert len(far.take(3)) == 3
            link.cut()
            far.take(10)

            assert far.process.wait(timeout=30) == -signal.SIGABRT
    assert version_at(two_shards[0].port) == PROTOCOL


def test_through_a_tunnel_the_bits_are_the_same_and_its_death_ends_the_head(
    tiny: Path, two_shards: list[ShardProcess], tmp_path: Path
) -> None:
    near, far = (new_identity(tmp_path / name, name) for name in ("head", "shard"))

    with ExitStack() as stack:
        way_out = end("exit", far, near, two_shards[0].port)
        stack.callback(way_out.close)
        way_in = end("entry", near, far, way_out.port)
        stack.callback(way_in.close)
        split = Split(shards=(ShardPlace(port=way_in.port, layers=3),))
        head_process = stack.enter_context(head(tiny, split, "deterministic"))
        assert head_process.take(7) == alone(tiny, "deterministic", 6)
        os.kill(way_out.pid, signal.SIGKILL)
        head_process.take(10)

        assert head_process.process.wait(timeout=30) == -signal.SIGABRT
    assert version_at(two_shards[0].port) == PROTOCOL


def test_where_a_shard_is_missing_the_load_fails_with_its_name_and_never_runs_local(
    tiny: Path, two_shards: list[ShardProcess]
) -> None:
    with shards(None) as (gone,):
        pass
    split = Split(
        shards=(ShardPlace(port=two_shards[0].port, layers=1), ShardPlace(port=gone.port, layers=1, name="attic"))
    )

    with head(tiny, split, "deterministic") as far:
        assert far.take(1) == []
        said = far.last_words()
        assert far.process.returncode == 1

    assert "the shard on attic cannot be used: nobody answers there (Connection refused)" in said


def test_a_shard_gives_no_more_memory_than_it_was_told_to() -> None:
    def given(port: int, size: int) -> int:
        """Bytes of a buffer that a shard makes, asked in llama.cpp's own words."""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as far, far.makefile("rb") as replies:
            far.sendall(struct.pack("<BQ24x", 14, 24))
            assert len(replies.read(36)) == 36
            far.sendall(struct.pack("<BQIQ", 0, 12, 0, size))
            _, _, remote_size = struct.unpack("<QQQ", replies.read(24))
        return int(remote_size)

    with shards(None, memory=256 * 2**20) as (shard,):
        assert given(shard.port, 256 * 2**20) == 256 * 2**20
        assert given(shard.port, 2**31) == 0


def test_the_second_load_of_a_model_sends_none_of_its_large_tensors(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.gguf", n_ff=45_056, n_layer=1)  # three tensors of 11 MiB
    cache = tmp_path / "cache"
    sent, told = [], []
    for _ in range(2):
        with shards(cache, numerics="fast") as (shard,), TcpProxy(shard.port) as link:
            with head(model, Split(shards=(ShardPlace(port=link.port, layers=1),)), "fast") as far:
                told.append(far.take(4))
            shard.keep_cache()
            sent.append(link.num_sent)

    assert told[0] == told[1]
    assert sent[0] > 33 * 2**20
    assert sent[1] < 2**20


def test_what_a_load_that_was_broken_off_left_in_the_cache_is_not_used(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "0123456789abcdef").write_bytes(b"half")

    with shards(cache):
        assert list(cache.iterdir()) == []


def test_a_shard_ends_with_whoever_started_it() -> None:
    program = """if True:
        import time
        from packtrain.workers.shards.process import ShardProcess
        shard = ShardProcess(cache_folder=None, n_threads=1)
        shard.wait()
        print(shard.pid, flush=True)
        time.sleep(99)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        shard = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    gone, _ = psutil.wait_procs([shard], timeout=10)

    assert gone == [shard]


def test_a_shard_has_no_secrets_and_says_what_holds_it(two_shards: list[ShardProcess]) -> None:
    environment = Path(f"/proc/{two_shards[0].pid}/environ").read_bytes().split(b"\0")
    names = {entry.partition(b"=")[0] for entry in environment if entry}
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{two_shards[0].pid}/status").read_text().splitlines())

    assert not [name for name in names if name.startswith(b"PACKTRAIN_") and name != b"PACKTRAIN_LIFELINE"]
    assert "confined by limits, no_new_privs" in two_shards[0].said
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_a_shard_that_ends_before_it_answers_says_so() -> None:
    shard = ShardProcess(cache_folder=None, n_threads=1)
    shard.close()

    with pytest.raises(ModelLoadFailed, match=r"ended with code -9 before it answered"):
        shard.wait(timeout_s=5)


def test_a_split_that_runs_local_is_an_error(tiny: Path) -> None:
    local = LlamaCppBackend(tiny, model="m", n_slots=1, n_ctx=256, n_threads=1)
    split = Split(shards=(ShardPlace(port=1, layers=2, name="attic"),))

    with pytest.raises(ModelLoadFailed, match="the shard on attic got no weights"):
        check_is_split(local._ctx, split, RemoteLayers((1,), (2,)))
    local.shutdown()
