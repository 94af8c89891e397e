"""Which files the adapters are that packtrain.toml names, and whether their model can use them.

An adapter that cannot be used does not keep its model from being offered: it is listed with its fault, and jobs that
name it hear that. So an operator who mistypes one path loses one adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packtrain.broker.model_info import AdapterInfo, ModelFault
from packtrain.workers.adapters import AdapterFile
from packtrain.workers.catalog_config import AdapterOptions
from packtrain.workers.gguf import GgufHeader
from packtrain.workers.model_files import ModelFile, ModelFiles, printable


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """An adapter that packtrain.toml names."""

    info: AdapterInfo
    file: AdapterFile | None = None  # None: it cannot be used
    fingerprint: str = ""  # of the file


class AdapterFinder:
    """Adapters among the files that a scan of the model folders has found.

    Args:
        folders: Model folders; earlier ones win.
        headers: Of every GGUF file there, or what is wrong with it.
    """

    def __init__(self, folders: Sequence[Path], headers: Mapping[ModelFile, GgufHeader | ModelFault]) -> None:
        self._folders = folders
        self._files = {file.path: (file, header) for file, header in headers.items()}

    def find(self, name: str, options: AdapterOptions, base: GgufHeader) -> FoundAdapter:
        """The adapter that is called `name`, for a model with the header `base`."""
        info = AdapterInfo(name=name, file=printable(Path(options.path).name), scale=options.scale)
        found = next((self._files[path] for path in self._paths(options) if path in self._files), None)
        if found is None:
            fault = f"no file {printable(options.path)!r} is in the model folders; put it there or correct its path"
            return FoundAdapter(info.model_copy(update={"fault": fault}))
        file, header = found
        fault = header.reason if isinstance(header, ModelFault) else base.fault_of_adapter(header)
        if fault or isinstance(header, ModelFault):
            return FoundAdapter(info.model_copy(update={"fault": fault}))
        return FoundAdapter(
            info.model_copy(update={"weights_bytes": header.tensor_bytes}),
            AdapterFile(name=name, path=str(file.path), scale=options.scale),
            ModelFiles((file,)).fingerprint,
        )

    def _paths(self, options: AdapterOptions) -> list[Path]:
        return [folder / options.path for folder in self._folders]


def fingerprint_with(model: str, adapters: Sequence[FoundAdapter]) -> str:
    """A name for the content of a model's files together with those of its adapters: what they take is kept by it."""
    seen = [adapter.fingerprint for adapter in adapters if adapter.file]
    return hashlib.sha256(repr([model, *seen]).encode()).hexdigest()[:32] if seen else model
