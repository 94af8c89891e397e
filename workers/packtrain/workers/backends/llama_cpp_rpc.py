"""llama.cpp's RPC: both ends. A shard offers this machine's CPU; a head has the shards as devices.

All functions are found through libllama, whose own libraries they are. To open them by name is a trap: the wheel holds
three copies of each, and `libggml.so` is another one than the `libggml.so.0` that libllama has, with devices of its
own. The shards' devices are registered nowhere: a model has them only if it is told to.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Any

from packtrain.broker.errors import ModelLoadFailed
from packtrain.workers.backends import llama_cpp_library
from packtrain.workers.backends.llama_cpp_layout import breakdown, ggml
from packtrain.workers.backends.llama_cpp_params import RemoteLayers
from packtrain.workers.shards.hello import Version, check_shard
from packtrain.workers.shards.split import HOST, Split

logger = logging.getLogger(__name__)

#: Of ggml-rpc.h; a test asks a real shard.
PROTOCOL: Version = (7, 0, 0)
_CPU = 0  # enum ggml_backend_dev_type


def serve(port: int, *, cache: str, n_threads: int) -> None:
    """Be a shard: serve one head after another. Returns only when it cannot listen (any more).

    Args:
        port: On loopback.
        cache: Folder of tensors; empty: none is kept.
    """
    devices = (ctypes.c_void_p * 1)(ggml("ggml_backend_dev_by_type", ctypes.c_void_p, ctypes.c_int)(_CPU))
    arguments = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
    start = ggml("ggml_backend_rpc_start_server", None, *arguments)
    start(f"{HOST}:{port}".encode(), cache.encode() or None, n_threads, 1, devices)


def connect(split: Split) -> RemoteLayers:
    """The shards as devices of this process, which they are until it ends.

    Raises:
        ModelLoadFailed: One of them cannot be used; the message names it.
    """
    if not llama_cpp_library.supports_rpc():
        raise ModelLoadFailed("llama.cpp was built without RPC here; build it with `make setup`")
    # All are asked before the first is added: what fails after that fails by SIGABRT.
    for shard in split.shards:
        check_shard(shard, PROTOCOL)
    add = ggml("ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
    count = ggml("ggml_backend_reg_dev_count", ctypes.c_size_t)
    first = ggml("ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    devices = []
    for shard in split.shards:
        offered = add(shard.endpoint.encode())
        if not offered or count(offered) != 1:
            raise ModelLoadFailed(f"{shard} offers no device; see to its log, or plan without it")
        devices.append(int(first(offered, 0)))
    return RemoteLayers(tuple(devices), tuple(shard.layers for shard in split.shards))


def check_is_split(ctx: Any, split: Split, remote: RemoteLayers) -> None:
    """See that each shard holds weights: llama.cpp says nothing when it computes all of a model by itself.

    Raises:
        ModelLoadFailed: One holds none.
    """
    held = {part.device: part for part in breakdown(ctx)}
    for shard, device in zip(split.shards, remote.devices, strict=True):
        part = held.get(device)
        if part is None or not part.weights:
            raise ModelLoadFailed(f"{shard} got no weights, so this would not be a split; plan the split again")
        logger.info(
            "%s holds %d layers: %d MiB of weights, %d of cache, %d of scratch space", shard, shard.layers,
            part.weights // 2**20, part.cache // 2**20, part.compute // 2**20, extra={"event": "split.shard"},
        )  # fmt: skip
