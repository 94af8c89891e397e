"""llama.cpp as a library of this process: made ready once, its log kept for our own messages."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
from collections import deque
from typing import Any

# ggml reads this once: no debugger may be forked onto a dying process that still holds gigabytes.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from llama_cpp import llama_cpp as C

logger = logging.getLogger(__name__)

_ERROR = 4  # of enum ggml_log_level

_last_errors: deque[str] = deque(maxlen=8)


@C.llama_log_callback  # type: ignore[untyped-decorator]
def on_log(level: int, text: bytes, _user: Any) -> None:
    """Keep llama.cpp's errors for our own messages; drop its chatter, which would be 200 lines per load."""
    line = text.decode("utf-8", "replace").strip()
    if line and level == _ERROR:
        _last_errors.append(line)
        logger.warning("llama.cpp: %s", line, extra={"event": "llama.error"})


C.llama_log_set(on_log, ctypes.c_void_p(0))
C.llama_backend_init()


def forget_errors() -> None:
    """Before a call whose errors shall be told apart from earlier ones."""
    _last_errors.clear()


def first_error() -> str:
    """The cause of a failure; the errors after it only say what could not be done because of it."""
    return _last_errors[0] if _last_errors else "no reason given"


def last_error() -> str | None:
    """What llama.cpp said last."""
    return _last_errors[-1] if _last_errors else None


def supports_rpc() -> bool:
    """True when the library was built with -DGGML_RPC=ON."""
    return bool(C.llama_supports_rpc())


def system_info() -> str:
    """CPU features that the library was built with and found."""
    return str(C.llama_print_system_info().decode()).strip()


def features() -> str:
    """`system_info` without what is off."""
    found = re.findall(r"(\w+) = 1\b", system_info())
    return " ".join([platform.machine(), *found])
