"""What a node offers: its catalog in the form the agent reports, from GGUF files or, in tests, from scripts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from packtrain.broker.ids import ModelId
from packtrain.broker.messages import ModelFault, ModelInfo
from packtrain.broker.settings import Settings
from packtrain.workers.backends.scripted_files import scripted_models
from packtrain.workers.catalog import Catalog, CatalogScanner
from packtrain.workers.catalog_config import load_catalog_config

logger = logging.getLogger(__name__)


class NodeCatalog(Protocol):
    """Models by id, looked for again on each `scan`."""

    backend: Literal["llama_cpp", "scripted"]
    models: Mapping[ModelId, tuple[ModelInfo, Path]]
    faults: tuple[ModelFault, ...]

    def scan(self) -> bool:
        """Look again. True when something changed."""
        ...

    def offered(self) -> list[ModelInfo]:
        """Every model, and every alias as an entry of its own."""
        ...


class GgufCatalog:
    """The GGUF files in the model folders of a home.

    Raises:
        SetupError: packtrain.toml is wrong.
    """

    backend: Literal["llama_cpp", "scripted"] = "llama_cpp"

    def __init__(self, settings: Settings, budget_bytes: int) -> None:
        config = load_catalog_config(settings.home)
        self._scanner = CatalogScanner(settings.model_folders, config, budget_bytes)
        self._catalog = Catalog()
        self.models: Mapping[ModelId, tuple[ModelInfo, Path]] = {}
        self.faults: tuple[ModelFault, ...] = ()

    def scan(self) -> bool:
        catalog = self._scanner.scan()
        if catalog is self._catalog:
            return False
        self._catalog = catalog
        self.models = {model: (entry.info, entry.path) for model, entry in catalog.models.items()}
        for fault in set(catalog.faults) - set(self.faults):
            logger.warning("Cannot offer %s: %s", fault.file, fault.reason, extra={"event": "model.fault"})
        self.faults = catalog.faults
        return True

    def offered(self) -> list[ModelInfo]:
        aliases = [ModelInfo(id=alias, alias_of=model) for alias, model in self._catalog.aliases.items()]
        return [info for info, _ in self.models.values()] + aliases


class ScriptedCatalog:
    """Scripted models, see `backends.scripted_files`."""

    backend: Literal["llama_cpp", "scripted"] = "scripted"

    def __init__(self, settings: Settings) -> None:
        self._folders = settings.model_folders
        self.models: Mapping[ModelId, tuple[ModelInfo, Path]] = {}
        self.faults: tuple[ModelFault, ...] = ()

    def scan(self) -> bool:
        before, self.models = self.models, scripted_models(self._folders)
        return before != self.models

    def offered(self) -> list[ModelInfo]:
        return [info for info, _ in self.models.values()]
