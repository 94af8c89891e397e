"""LoRA adapters in llama.cpp: loaded beside a model, set on its context when another set's turn comes.

Setting costs 28 us, but the next step lays out its graphs anew, 7 ms for 30 layers; so it is done only for a change.
With none set the context computes the model's own bits again.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as C

from packtrain.broker.errors import ModelFileInvalid
from packtrain.workers.adapters import Adapter, AdapterFile, AdapterSet
from packtrain.workers.backends.llama_cpp_checks import why_not_batched
from packtrain.workers.backends.llama_cpp_library import first_error, forget_errors
from packtrain.workers.gguf import GgufHeader, read_header

logger = logging.getLogger(__name__)


class LoadedAdapters:
    """The adapters of one model and the set that its context computes with. One that cannot be loaded has a fault.

    Args:
        model: `llama_model`; it must be freed after `close`.
        base: Its file, or the first part.
        files: Adapters to load.
    """

    def __init__(self, model: Any, base: Path, files: Sequence[AdapterFile]) -> None:
        self._handles: dict[str, Any] = {}
        self._offered: dict[str, Adapter] = {}
        self._kinds: dict[str, frozenset[str]] = {}  # types of their matrices
        self._current: AdapterSet = ()
        header = read_header(base) if files else None
        for file in files:
            assert header is not None
            fault, self._kinds[file.name] = _look_at(Path(file.path), header)
            if not fault:
                forget_errors()
                handle = C.llama_adapter_lora_init(model, file.path.encode())
                if handle:
                    self._handles[file.name] = handle
                else:
                    fault = f"llama.cpp refuses it: {first_error()}"
            self._offered[file.name] = Adapter(file.scale)
            if fault:
                self.give_up(file.name, fault)

    @property
    def offered(self) -> Mapping[str, Adapter]:
        """All, by name."""
        return self._offered

    @property
    def usable(self) -> dict[str, Adapter]:
        """Those without a fault."""
        return {name: adapter for name, adapter in self._offered.items() if not adapter.fault}

    def why_not_batched(self, name: str) -> str:
        """As `llama_cpp_checks.why_not_batched`, for this one."""
        return why_not_batched(self._kinds[name])

    def give_up(self, name: str, fault: str) -> None:
        """Let no job use this one any more."""
        logger.warning("The adapter %s cannot be used: %s", name, fault, extra={"event": "adapter.unusable"})
        self._offered[name] = Adapter(self._offered[name].scale, fault)

    def set_on(self, ctx: Any, adapters: AdapterSet) -> None:
        """Let the next steps of the model's context compute with these."""
        if adapters == self._current:
            return
        count = len(adapters)
        handles = (C.llama_adapter_lora_p_ctypes * count)(*(self._handles[name] for name, _ in adapters))
        scales = (ctypes.c_float * count)(*(scale for _, scale in adapters))
        code = C.llama_set_adapters_lora(ctx, handles, count, scales)
        assert code == 0, f"llama_set_adapters_lora returned {code} for {adapters}"
        self._current = adapters

    def close(self) -> None:
        """Free them. After the context, before the model."""
        for handle in self._handles.values():
            C.llama_adapter_lora_free(handle)
        self._handles.clear()


def _look_at(path: Path, base: GgufHeader) -> tuple[str, frozenset[str]]:
    """Fault and types as the header tells them: once more, for the file may be another one since the catalog looked."""
    try:
        header = read_header(path)
    except ModelFileInvalid as error:
        return str(error.data["reason"]), frozenset()
    return base.fault_of_adapter(header), frozenset(header.tensor_types)
