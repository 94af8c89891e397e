"""What a node offers: its catalog in the form the agent reports, from GGUF files or, in tests, from scripts."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from packtrain.broker.ids import ModelId
from packtrain.broker.model_info import ModelFault, ModelInfo, ModelMemory
from packtrain.broker.settings import Settings
from packtrain.workers import model_files
from packtrain.workers.adapters import AdapterFile
from packtrain.workers.backends import scripted_files
from packtrain.workers.catalog import Catalog, CatalogEntry, CatalogScanner
from packtrain.workers.catalog_config import load_catalog_config
from packtrain.workers.instance_messages import InstanceConfig
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.memory import estimate_memory
from packtrain.workers.memory_book import LoadKey, MemoryBook, Readings, needed_mapped_bytes
from packtrain.workers.memory_probe import MemoryQuestion
from packtrain.workers.memory_prober import MemoryProber
from packtrain.workers.remote.options import RemoteOptions

logger = logging.getLogger(__name__)


class NodeCatalog(Protocol):
    """Models by id, looked for again on each `scan`."""

    backend: Literal["llama_cpp", "scripted"]
    suffix: str  # of its files
    models: Mapping[ModelId, tuple[ModelInfo, Path]]
    faults: tuple[ModelFault, ...]

    def scan(self) -> bool:
        """Look again. True when something changed."""
        ...

    def poll(self) -> bool:
        """Go on with what is found out in the background; never blocks. True when something changed."""
        ...

    def offered(self) -> list[ModelInfo]:
        """Every model, and every alias as an entry of its own."""
        ...

    def options(self, model: ModelId) -> LoadOptions:
        """How to load a model that is there."""
        ...

    def adapters(self, model: ModelId) -> tuple[AdapterFile, ...]:
        """LoRA adapters to load with it: those that can be used."""
        ...

    def projector(self, model: ModelId) -> Path | None:
        """What turns images into rows of its input; None: it takes text alone."""
        ...

    def remote(self, model: ModelId) -> RemoteOptions | None:
        """The server that answers for a model; None: it is loaded here."""
        ...

    def note_readings(self, config: InstanceConfig, readings: Readings) -> int | None:
        """Learn from what an instance takes. Bytes of mapped files that it needs; None: all that it has mapped."""
        ...

    def close(self) -> None:
        """End what runs in the background."""
        ...


class GgufCatalog:
    """The GGUF files in the model folders of a home.

    Args:
        granted_bytes: What there is for instances, asked once at the first scan, when no instance of ours runs yet.
        book: What is known of the memory of models.
        prober: Finds out more; None: nobody asks.

    Raises:
        SetupError: packtrain.toml is wrong.
    """

    backend: Literal["llama_cpp", "scripted"] = "llama_cpp"
    suffix = model_files.SUFFIX

    def __init__(
        self, settings: Settings, granted_bytes: Callable[[], int], book: MemoryBook, prober: MemoryProber | None = None
    ) -> None:
        self._config = load_catalog_config(settings.home)
        self._folders = settings.model_folders
        self._granted_bytes = granted_bytes
        self._scanner: CatalogScanner | None = None
        self._catalog = Catalog()
        self._book = book
        self._prober = prober
        self._build = llama_build()
        self.models: Mapping[ModelId, tuple[ModelInfo, Path]] = {}
        self.faults: tuple[ModelFault, ...] = ()

    def scan(self) -> bool:
        if self._scanner is None:
            self._scanner = CatalogScanner(self._folders, self._config, self._granted_bytes())
        catalog = self._scanner.scan()
        if catalog is self._catalog:
            return False
        self._catalog = catalog
        self._correct()
        for fault in set(catalog.faults) - set(self.faults):
            logger.warning("Cannot offer %s: %s", fault.file, fault.reason, extra={"event": "model.fault"})
        self.faults = catalog.faults
        if self._prober:
            self._prober.want(self._questions())
        return True

    def poll(self) -> bool:
        answer = self._prober.poll() if self._prober else None
        if answer is None:
            return False
        self._book.note_estimate(*answer)
        self._correct()
        return True

    def offered(self) -> list[ModelInfo]:
        aliases = [ModelInfo(id=alias, alias_of=model) for alias, model in self._catalog.aliases.items()]
        return [info for info, _ in self.models.values()] + aliases

    def options(self, model: ModelId) -> LoadOptions:
        return self._catalog.models[model].options

    def adapters(self, model: ModelId) -> tuple[AdapterFile, ...]:
        return self._catalog.models[model].adapters

    def projector(self, model: ModelId) -> Path | None:
        return self._catalog.models[model].projector

    def remote(self, model: ModelId) -> RemoteOptions | None:  # noqa: ARG002
        return None

    def note_readings(self, config: InstanceConfig, readings: Readings) -> int | None:
        entry = self._catalog.models.get(ModelId(config.model))
        if entry is None:  # its file is gone
            return None
        key = LoadKey(
            file=entry.fingerprint, n_ctx=config.n_ctx, n_slots=config.n_slots, options=config.options,
            build=self._build,
        )  # fmt: skip
        estimate = self._estimate(key, entry)
        if self._book.note_readings(key, readings, estimate):
            self._correct()
        return needed_mapped_bytes(readings, estimate)

    def close(self) -> None:
        if self._prober:
            self._prober.close()

    def _questions(self) -> dict[LoadKey, MemoryQuestion]:
        entries = {self._key(entry): entry for entry in self._catalog.models.values()}
        return {
            key: MemoryQuestion(path=str(entry.path), n_ctx=key.n_ctx, n_slots=key.n_slots, options=key.options)
            for key, entry in entries.items()
            if self._book.estimate(key) is None
        }

    def _correct(self) -> None:
        """Bring what is offered up to date with what is known."""
        self.models = {model: (self._corrected(entry), entry.path) for model, entry in self._catalog.models.items()}

    def _corrected(self, entry: CatalogEntry) -> ModelInfo:
        key = self._key(entry)
        memory = self._book.corrected(key, self._estimate(key, entry))
        return entry.info.model_copy(update={"memory": memory, "required_bytes": memory.required_bytes})

    def _estimate(self, key: LoadKey, entry: CatalogEntry) -> ModelMemory:
        estimate = self._book.estimate(key) or estimate_memory(
            entry.header, key.options, n_ctx=key.n_ctx, n_slots=key.n_slots
        )
        said = entry.info.memory
        extras = {"adapter_bytes": entry.adapter_bytes, "image_bytes": said.image_bytes}
        return estimate.model_copy(update={**extras, "picture_bytes": said.picture_bytes})

    def _key(self, entry: CatalogEntry) -> LoadKey:
        return LoadKey(
            file=entry.fingerprint, n_ctx=entry.info.n_ctx, n_slots=entry.info.n_slots, options=entry.options,
            build=self._build,
        )  # fmt: skip


class ScriptedCatalog:
    """Scripted models, see `backends.scripted_files`."""

    backend: Literal["llama_cpp", "scripted"] = "scripted"
    suffix = scripted_files.SUFFIX

    def __init__(self, settings: Settings) -> None:
        self._folders = settings.model_folders
        self.models: Mapping[ModelId, tuple[ModelInfo, Path]] = {}
        self.faults: tuple[ModelFault, ...] = ()

    def scan(self) -> bool:
        before, self.models = self.models, scripted_files.scripted_models(self._folders)
        return before != self.models

    def poll(self) -> bool:
        return False

    def offered(self) -> list[ModelInfo]:
        return [info for info, _ in self.models.values()]

    def options(self, model: ModelId) -> LoadOptions:  # noqa: ARG002
        return LoadOptions()

    def adapters(self, model: ModelId) -> tuple[AdapterFile, ...]:
        info, path = self.models[model]
        return tuple(AdapterFile(name=a.name, path=str(path), scale=a.scale) for a in info.adapters)

    def projector(self, model: ModelId) -> Path | None:  # noqa: ARG002
        return None  # a script that sees needs no other file

    def remote(self, model: ModelId) -> RemoteOptions | None:  # noqa: ARG002
        return None

    def note_readings(self, config: InstanceConfig, readings: Readings) -> int | None:  # noqa: ARG002
        return None  # scripted models take what their file says

    def close(self) -> None:
        """Nothing runs in the background."""


def llama_build() -> str:
    """The llama.cpp that instances of this node load, named without loading it; empty where there is none."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return ""
    library = next(iter(sorted((Path(spec.origin).parent / "lib").glob("libllama.*"))), None)
    seen = f" {library.stat().st_size} {library.stat().st_mtime_ns}" if library else ""
    return version("llama-cpp-python") + seen


def rpc_build() -> str:
    """The llama.cpp of this node as others must have it to hold a model with it; empty where it has no RPC."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None or not list((Path(spec.origin).parent / "lib").glob("libggml-rpc.*")):
        return ""
    return f"{version('llama-cpp-python')} {platform.machine()}"
