"""The demo model over two shards: the same bits as on one machine."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import pytest

from packtrain.workers.shards.process import ShardProcess
from packtrain.workers.shards.split import ShardPlace, Split
from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.split_head import alone, head

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform != "linux", reason="a split needs Linux")]


def test_the_demo_model_over_two_shards_computes_the_bits_of_one_machine() -> None:
    path = demo_model_folder() / f"{MODEL}.gguf"
    with ExitStack() as stack:
        shards = []
        for _ in range(2):
            shards.append(ShardProcess(cache_folder=None, n_threads=1, numerics="deterministic"))
            stack.callback(shards[-1].close)
        for shard in shards:
            shard.wait()
        split = Split(shards=tuple(ShardPlace(port=shard.port, layers=10) for shard in shards))
        far = stack.enter_context(head(path, split, "deterministic"))
        computed = far.take(17)

    assert computed == alone(path, "deterministic", 16)
    assert computed[0].logits == "batched"
