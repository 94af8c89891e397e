"""Composition root of a shard: it holds layers of a model for a head elsewhere, and computes them when it is asked.

    main thread   llama.cpp's RPC server on loopback, one head at a time
    lifeline      ends the process with its parent

It knows no broker and has no secrets, for whoever speaks to it can make it do anything that it may do: see
`shards/sandbox.py`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from packtrain.broker import lifeline
from packtrain.workers.shards.messages import ShardConfig
from packtrain.workers.shards.sandbox import confine

#: Data of the process itself: Python, libraries, what llama.cpp keeps of a graph and of messages under way.
OWN_BYTES = 512 * 1024 * 1024
EXIT_DEAF = 3


def main(argv: list[str]) -> int:
    """Entry point; returns only when it cannot listen."""
    config = ShardConfig.model_validate_json(argv[1])
    if config.numerics == "deterministic":
        os.environ["GGML_CPU_TILED_MM"] = "0"  # as in a head; ggml reads it once
    with suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/oom_score_adj").write_text("800")  # as of an instance, which ends with it anyway
    from packtrain.workers.backends.llama_cpp_rpc import serve

    held = confine(
        cache=Path(config.cache) if config.cache else None,
        port=config.port,
        data_bytes=config.memory_bytes and config.memory_bytes + OWN_BYTES,
    )
    sys.stderr.write(f"packtrain shard: port {config.port}, confined by {', '.join(held)}\n")
    sys.stderr.flush()
    lifeline.watch(lambda: os._exit(0))  # a thread, so not before
    serve(config.port, cache=config.cache, n_threads=config.n_threads)
    return EXIT_DEAF


if __name__ == "__main__":
    sys.exit(main(sys.argv))
