"""What a node offers besides its files: remote models, and names with several targets, as packtrain.toml has them.

A remote model takes its process and nothing else, so it fits wherever there is a little room, and every node whose
packtrain.toml names it and whose environment holds the key may run its instance. One instance in the whole fleet is
the rule, unless `replicas` says otherwise: each has its own count of requests at once and in a minute, and the server
counts them all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from packtrain.broker.claims import reserved_slots
from packtrain.broker.ids import ModelId
from packtrain.broker.media import MAX_MEDIA_BYTES
from packtrain.broker.model_info import BufferMemory, ModelFault, ModelInfo, ModelMemory
from packtrain.workers.adapters import AdapterFile
from packtrain.workers.catalog_config import FILE_NAME, CatalogConfig, ModelOptions
from packtrain.workers.instance_messages import InstanceConfig
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.memory_book import Readings
from packtrain.workers.node_catalog import NodeCatalog
from packtrain.workers.remote.options import RemoteOptions

logger = logging.getLogger(__name__)

#: Python and its libraries, and what a few dozen answers on their way take, as measured.
PROCESS_BYTES = 96 * 1024 * 1024
#: Of a job's media while they are sent: bytes, base64, and the request that they are part of.
MEDIA_COPIES = 4
#: Why a remote model has no deterministic numerics.
NO_PROOF = "another server answers, and nothing about its answers can be proven"


class RemoteCatalog:
    """A `NodeCatalog`: that of a node's files, with its remote models and aliases.

    Args:
        files: Models that this node can load.
        environ: Where the keys are.
    """

    def __init__(
        self, files: NodeCatalog, config: CatalogConfig, environ: Callable[[str], str | None] = os.environ.get
    ) -> None:
        self._files = files
        self._config = config
        self.backend: Literal["llama_cpp", "scripted"] = files.backend
        self.suffix = files.suffix
        self._remotes: dict[ModelId, RemoteOptions] = {}
        self._infos: dict[ModelId, ModelInfo] = {}
        self._own_faults: list[ModelFault] = []
        for name, options in config.models.items():
            if options.remote is None:
                continue
            remote = options.remote.model_copy(update={"model": options.remote.model or name})
            if remote.key_env and not (environ(remote.key_env) or "").strip():
                self._own_faults.append(ModelFault(file=f"[models.{name}.remote]", reason=remote.why_no_key))
                continue
            self._remotes[ModelId(name)] = remote
            self._infos[ModelId(name)] = self._info(name, options, remote)
        for fault in self._own_faults:
            logger.warning("Cannot offer %s: %s", fault.file, fault.reason, extra={"event": "model.fault"})
        self.models: Mapping[ModelId, tuple[ModelInfo, Path]] = {}
        self.faults: tuple[ModelFault, ...] = ()
        self._join()

    def scan(self) -> bool:
        changed = self._files.scan()
        if changed:
            self._join()
        return changed

    def poll(self) -> bool:
        changed = self._files.poll()
        if changed:
            self._join()
        return changed

    def offered(self) -> list[ModelInfo]:
        files = [info for info in self._files.offered() if info.id not in self._taken]
        names = {info.id for info in files}
        aliases = [
            ModelInfo(id=alias, alias_of=name)
            for name in self._infos
            for alias in self._config.models[name].aliases
            if alias not in names
        ]
        several = [
            ModelInfo(
                id=name, alias_of=options.targets[0], targets=options.targets, spill_after_s=options.spill_after_s
            )
            for name, options in self._config.aliases.items()
            if name not in names
        ]  # fmt: skip
        return [*files, *self._infos.values(), *aliases, *several]

    def options(self, model: ModelId) -> LoadOptions:
        return LoadOptions() if model in self._remotes else self._files.options(model)

    def adapters(self, model: ModelId) -> tuple[AdapterFile, ...]:
        return () if model in self._remotes else self._files.adapters(model)

    def projector(self, model: ModelId) -> Path | None:
        return None if model in self._remotes else self._files.projector(model)

    def remote(self, model: ModelId) -> RemoteOptions | None:
        return self._remotes.get(model)

    def note_readings(self, config: InstanceConfig, readings: Readings) -> int | None:
        return None if config.remote else self._files.note_readings(config, readings)

    def close(self) -> None:
        self._files.close()

    @property
    def _taken(self) -> set[str]:
        """Names that are those of no file here."""
        return {name for name, options in self._config.models.items() if options.remote}

    def _join(self) -> None:
        """Bring what is offered up to date. A remote model goes before a file of the same name."""
        taken, files = self._taken, self._files.models
        self.models = {m: e for m, e in files.items() if m not in taken} | {
            model: (info, Path(FILE_NAME)) for model, info in self._infos.items()
        }
        hidden = [
            ModelFault(
                file=info.file,
                reason=f"[models.{model}.remote] in {FILE_NAME} has its name {model!r}; rename one of them",
            )
            for model, (info, _) in files.items()
            if model in taken
        ]
        names = {info.id for info in self._files.offered()}
        named = [
            ModelFault(
                file=FILE_NAME,
                reason=f"the alias {name!r} is also the id of a model here, which has it; choose another",
            )
            for name in self._config.aliases
            if name in names
        ]
        self.faults = (*self._files.faults, *self._own_faults, *hidden, *named)

    def _info(self, name: str, options: ModelOptions, remote: RemoteOptions) -> ModelInfo:
        defaults = self._config.defaults
        wanted = defaults.reserved_slots if options.reserved_slots is None else options.reserved_slots
        media = MEDIA_COPIES * MAX_MEDIA_BYTES if len(remote.modalities) > 1 else 0
        memory = ModelMemory(process_bytes=PROCESS_BYTES, buffers=(BufferMemory(),), picture_bytes=media)
        return ModelInfo(
            id=name,
            file=remote.shown,
            architecture="remote",
            has_chat_template=True,
            modalities=remote.modalities,
            n_ctx=options.context or 0,
            n_slots=remote.concurrency,
            reserved_slots=reserved_slots(remote.concurrency, wanted, parks=False),
            required_bytes=memory.required_bytes,
            memory=memory,
            keep_alive_s=defaults.keep_alive if options.keep_alive is None else options.keep_alive,
            pinned=options.pinned,
            min_replicas=options.replicas.min,
            max_replicas=options.replicas.max or max(1, options.replicas.min),
            nodes=options.nodes,
            remote=remote.shown,
        )
