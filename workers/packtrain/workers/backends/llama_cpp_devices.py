"""The devices that ggml has found on this machine, with their memory as it is now."""

from __future__ import annotations

import ctypes

from packtrain.workers.backends import llama_cpp_library  # noqa: F401  loads the backends
from packtrain.workers.backends.llama_cpp_layout import ggml
from packtrain.workers.devices import FoundDevice


def found_devices() -> list[FoundDevice]:
    """All of them, the CPU too."""
    count = ggml("ggml_backend_dev_count", ctypes.c_size_t, ctypes.c_void_p)(None)
    return [_read(ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)(index)) for index in range(count)]


def _read(device: int) -> FoundDevice:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    pointer = ctypes.POINTER(ctypes.c_size_t)
    ggml("ggml_backend_dev_memory", None, ctypes.c_void_p, pointer, pointer)(
        device, ctypes.byref(free), ctypes.byref(total)
    )
    name, description = (
        ggml(f"ggml_backend_dev_{what}", ctypes.c_char_p)(device) or b"" for what in ("name", "description")
    )
    return FoundDevice(
        name=name.decode("utf-8", "replace"),
        description=description.decode("utf-8", "replace"),
        type=ggml("ggml_backend_dev_type", ctypes.c_int)(device),
        free=free.value,
        total=total.value,
    )
