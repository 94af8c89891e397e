"""A GPU for tests: llama.cpp's RPC backend offers the CPU of another process as a device of type GPU.

    python -m tests.support.rpc_device serve PORT
    python -m tests.support.rpc_device list PORT                 what our side sees of it
    python -m tests.support.rpc_device fit PORT MODEL LAYERS     free on the device: room for that many layers

Both are processes of their own: a device stays registered until its process ends.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import llama_cpp

from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.backends.llama_cpp_devices import found_devices
from packtrain.workers.backends.llama_cpp_fit import SPARE_BYTES, free_on_gpus, with_fitting_layers
from packtrain.workers.backends.llama_cpp_layout import ggml, laid_out
from packtrain.workers.load_options import LoadOptions

N_CTX, N_SLOTS = 256, 2


def _rpc() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-rpc.so.0"))


def serve(port: str) -> None:
    """Offer the CPU. Never returns."""
    devices = (ctypes.c_void_p * 1)(ggml("ggml_backend_dev_by_type", ctypes.c_void_p, ctypes.c_int)(0))
    start = _rpc().ggml_backend_rpc_start_server
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    start(f"127.0.0.1:{port}".encode(), None, 1, 1, devices)


def _add(port: str) -> None:
    add = _rpc().ggml_backend_rpc_add_server
    add.restype, add.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    ggml("ggml_backend_register", None)(add(f"127.0.0.1:{port}".encode()))


def list_devices(port: str) -> None:
    """Print all devices."""
    _add(port)
    sys.stdout.write(json.dumps([device.model_dump() for device in found_devices()]) + "\n")


def fit(port: str, model: str, layers: str) -> None:
    """Print what fits and the tokens that it computes."""
    _add(port)
    path, wanted = Path(model), int(layers)
    (device,) = free_on_gpus()
    with laid_out(path, LoadOptions(gpu_layers=wanted), n_ctx=N_CTX, n_slots=N_SLOTS) as layout:
        on_device = sum(part.total for part in layout.parts if part.device == device)
    room = {device: SPARE_BYTES + on_device}
    fitting = _fitting(path, LoadOptions(), room)
    named = _fitting(path, LoadOptions(gpu_layers=1), room)
    everything = _fitting(path, LoadOptions(), free_on_gpus())
    backend = LlamaCppBackend(path, model="m", n_ctx=N_CTX, n_slots=N_SLOTS, n_threads=1, options=fitting)
    backend.open(0, SamplingParams(temperature=0), 1, [], 0)
    tokens = [backend.step([StepRows(0, 0, [1, 2, 3], True)], lambda: False)[0].token]
    tokens += [backend.step([StepRows(0, 3, tokens[:1], True)], lambda: False)[0].token]
    found = {"fitting": fitting.gpu_layers, "named": named.gpu_layers, "everything": everything.gpu_layers}
    sys.stdout.write(json.dumps({**found, "on_device": on_device, "tokens": tokens}) + "\n")


def _fitting(path: Path, options: LoadOptions, room: Mapping[int, int]) -> LoadOptions:
    return with_fitting_layers(path, options, n_ctx=N_CTX, n_slots=N_SLOTS, free=lambda: room)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    elif sys.argv[1] == "list":
        list_devices(sys.argv[2])
    else:
        fit(*sys.argv[2:])
