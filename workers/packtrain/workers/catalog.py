"""The catalog: which models this node can load, under which names, with how much memory each.

Models are what the model folders hold. The id of a model is the slug of its file name unless `packtrain.toml` gives it
another; jobs name ids, never paths, so no message can make a node open a file of the sender's choice.

One bad file never hides the good ones: whatever is wrong with it becomes a fault with a reason, shown beside the
models. Files that belong to other models (projectors, LoRA adapters, importance matrices) are passed over; an adapter
is one of a model when `packtrain.toml` says so, a projector also when its name does (`catalog_projectors.py`).
When two files claim one id, the one that `packtrain.toml` names has it, else the one in the earlier folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packtrain.broker.claims import reserved_slots
from packtrain.broker.errors import ModelFileInvalid
from packtrain.broker.ids import ModelId, slug
from packtrain.broker.media import Modality
from packtrain.broker.model_info import AdapterInfo, ModelFault, ModelInfo, ModelMemory
from packtrain.workers.adapters import AdapterFile
from packtrain.workers.catalog_adapters import AdapterFinder, FoundAdapter, fingerprint_with
from packtrain.workers.catalog_config import FILE_NAME, CatalogConfig, ModelOptions
from packtrain.workers.catalog_projectors import FoundProjector, ProjectorFinder
from packtrain.workers.catalog_projectors import fingerprint_with as fingerprint_with_projector
from packtrain.workers.gguf import GgufHeader, merge_parts, read_header
from packtrain.workers.gguf_projector import with_projector
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.memory import default_slots, estimate_kv_bytes_per_token, estimate_memory, estimate_slot_bytes
from packtrain.workers.model_files import ModelFile, ModelFiles, find_model_files, group_parts, printable

MAX_FAULTS = 100  # they travel with every report of the node


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model that this node can load."""

    info: ModelInfo
    path: Path  # of the file, or of the first part
    header: GgufHeader  # of all parts together
    fingerprint: str  # of the files
    options: LoadOptions
    adapters: tuple[AdapterFile, ...] = ()  # those that can be used
    projector: Path | None = None

    @property
    def adapter_bytes(self) -> int:
        """Weights of all adapters that are loaded with the model."""
        return sum(adapter.weights_bytes for adapter in self.info.adapters if not adapter.fault)


@dataclass(frozen=True, slots=True)
class Catalog:
    """What the model folders held at one moment."""

    models: Mapping[ModelId, CatalogEntry] = field(default_factory=dict)
    aliases: Mapping[ModelId, ModelId] = field(default_factory=dict)  # alias -> id of a model that is there
    faults: tuple[ModelFault, ...] = ()

    def find(self, name: str) -> CatalogEntry | None:
        """The model with this id or alias."""
        model = ModelId(name)
        return self.models.get(self.aliases.get(model, model))


class CatalogScanner:
    """Looks into the model folders again and again, and reads only the headers of files that changed.

    Args:
        folders: Model folders; earlier ones win.
        config: What the operator says about models.
        granted_bytes: What there is for instances; slots that the operator does not set are chosen by it.
    """

    def __init__(self, folders: Sequence[Path], config: CatalogConfig, granted_bytes: int) -> None:
        self._folders = tuple(folders)
        self._config = config
        self._granted_bytes = granted_bytes
        self._headers: dict[ModelFile, GgufHeader | ModelFault] = {}
        self._last: tuple[tuple[ModelFile, ...], tuple[ModelFault, ...]] | None = None
        self._catalog = Catalog()

    def scan(self) -> Catalog:
        """The catalog now: the very same object as before when no file has changed. Blocks on the disk."""
        found = find_model_files(self._folders)
        seen = (tuple(found.files), tuple(found.faults))
        if seen != self._last:
            # Only what is there is kept, so the cache cannot outgrow the folders.
            self._headers = {file: self._headers.get(file) or _read(file) for file in found.files}
            self._catalog = self._build(group_parts(found.files), found.faults)
            self._last = seen
        return self._catalog

    def _build(self, groups: Sequence[ModelFiles], faults: Sequence[ModelFault]) -> Catalog:
        adapters = AdapterFinder(self._folders, self._headers)
        projectors = ProjectorFinder(self._folders, self._headers)
        building = _Building(self._config, self._granted_bytes, adapters, projectors, list(faults))
        ids = {options.file: ModelId(model) for model, options in self._config.models.items() if options.file}
        # Files that the operator named come first and so have their ids for sure. The sort keeps the folders' order.
        for files in sorted(groups, key=lambda files: files.first.path.name not in ids):
            header = self._whole_header(files)
            if isinstance(header, ModelFault):
                building.faults.append(header)
            elif header is not None:
                building.add(ids.get(files.first.path.name) or ModelId(slug(files.first.stem)), files, header)
        return building.finish()

    def _whole_header(self, files: ModelFiles) -> GgufHeader | ModelFault | None:
        """The header of all parts together, what is wrong with them, or None for files that are no model."""
        headers: list[GgufHeader] = []
        for file in files.parts:
            header = self._headers[file]
            if isinstance(header, ModelFault):
                return header
            headers.append(header)
        if not headers[0].is_model:
            return None
        if files.missing:
            reason = f"parts are missing: {files.missing}; put them into the same folder"
            return ModelFault(file=files.first.label, reason=reason)
        for file, header in zip(files.parts, headers, strict=True):
            number, count = file.part
            if (header.split_no + 1, header.split_count) != (number, count):
                says = f"it is part {header.split_no + 1} of {header.split_count}"
                reason = f"{says}, but its name makes it {number} of {count}; name it like model-00001-of-00003.gguf"
                return ModelFault(file=file.label, reason=reason)
        whole = merge_parts(headers)
        if not whole.tensor_bytes:
            return ModelFault(file=files.first.label, reason="it has no tensors; download it again")
        return whole


def load_catalog(folders: Sequence[Path], config: CatalogConfig, granted_bytes: int) -> Catalog:
    """The catalog of these folders, read once. `CatalogScanner` is for those who look again."""
    return CatalogScanner(folders, config, granted_bytes).scan()


@dataclass(slots=True)
class _Building:
    """A catalog in the making: who has which name so far."""

    config: CatalogConfig
    granted_bytes: int
    adapters: AdapterFinder
    projectors: ProjectorFinder
    faults: list[ModelFault]
    models: dict[ModelId, CatalogEntry] = field(default_factory=dict)
    files: dict[ModelId, ModelFile] = field(default_factory=dict)

    def add(self, model: ModelId, files: ModelFiles, header: GgufHeader) -> None:
        holder = self.files.get(model)
        options = self.config.load_options(model)
        if holder is None and (fault := options.fault_for(header.key_length, header.value_length)):
            self.faults.append(ModelFault(file=files.first.label, reason=fault))
        elif holder is None:
            self.files[model] = files.first
            found = self._find_adapters(model, header)
            projector = self._find_projector(model, files.first, header)
            info = self._info(model, files, header, options, tuple(adapter.info for adapter in found), projector)
            self.models[model] = CatalogEntry(
                info,
                files.first.path,
                header,
                fingerprint_with_projector(fingerprint_with(files.fingerprint, found), projector),
                options,
                tuple(adapter.file for adapter in found if adapter.file),
                projector.file.path if projector else None,
            )
        elif holder.identity != files.first.identity:  # else two ways to one file, which is nobody's fault
            both = f"{printable(str(holder.path))} and {printable(str(files.first.path))}"
            remedy = f"the first has it; rename the second, or give it an id in {FILE_NAME}"
            reason = f"the id {model!r} is claimed by {both}; {remedy}"
            self.faults.append(ModelFault(file=files.first.label, reason=reason))

    def finish(self) -> Catalog:
        aliases: dict[ModelId, ModelId] = {}
        for name, options in self.config.models.items():
            if options.remote:  # RemoteCatalog's
                continue
            model = ModelId(name)
            if model not in self.models:
                wanted = f"no file {printable(options.file)!r}" if options.file else f"no model {name!r}"
                reason = f"[models.{name}] has no effect: {wanted} is in the model folders; correct it or remove it"
                self.faults.append(ModelFault(file=FILE_NAME, reason=reason))
                continue
            for alias in map(ModelId, options.aliases):
                if alias in self.models:
                    reason = (
                        f"the alias {alias!r} of {name!r} is also the id of a file, which has it; choose another alias"
                    )
                    self.faults.append(ModelFault(file=FILE_NAME, reason=reason))
                else:
                    aliases[alias] = model
        if len(self.faults) > MAX_FAULTS:
            reason = f"{len(self.faults) - MAX_FAULTS} more faults are not shown; correct these first"
            self.faults[MAX_FAULTS:] = [ModelFault(file="", reason=reason)]
        return Catalog(dict(sorted(self.models.items())), aliases, tuple(self.faults))

    def _find_adapters(self, model: ModelId, header: GgufHeader) -> list[FoundAdapter]:
        options = self.config.models.get(model) or ModelOptions()
        found = [self.adapters.find(name, said, header) for name, said in options.adapters.items()]
        for adapter in found:
            if adapter.info.fault:
                reason = f"the adapter {adapter.info.name!r} of {model!r} cannot be used: {adapter.info.fault}"
                self.faults.append(ModelFault(file=adapter.info.file, reason=reason))
        return found

    def _find_projector(self, model: ModelId, file: ModelFile, header: GgufHeader) -> FoundProjector | None:
        options = self.config.models.get(model) or ModelOptions()
        found = None if header.embeds_only else self.projectors.find(options.mmproj, file, header)
        if isinstance(found, str):
            self.faults.append(ModelFault(file=FILE_NAME, reason=f"[models.{model}] mmproj has no effect: {found}"))
            return None
        return found

    def _info(
        self,
        model: ModelId,
        files: ModelFiles,
        header: GgufHeader,
        load: LoadOptions,
        adapters: tuple[AdapterInfo, ...],
        projector: FoundProjector | None,
    ) -> ModelInfo:
        defaults = self.config.defaults
        options = self.config.models.get(model) or ModelOptions()
        n_ctx = options.context or min(header.n_ctx_train, defaults.context)

        adapter_bytes = sum(adapter.weights_bytes for adapter in adapters if not adapter.fault)

        def memory(n_slots: int) -> ModelMemory:
            estimate = estimate_memory(header, load, n_ctx=n_ctx, n_slots=n_slots)
            return _with_images(estimate.model_copy(update={"adapter_bytes": adapter_bytes}), projector)

        n_slots = options.slots or defaults.slots
        if n_slots is None:
            per_slot = estimate_slot_bytes(header, n_ctx, load.kv_type_used)
            n_slots = default_slots(self.granted_bytes, per_slot, lambda slots: memory(slots).required_bytes)
        return ModelInfo(
            id=model,
            file=printable(files.first.path.name),
            architecture=header.architecture,
            quantization=header.quantization,
            parameters=header.parameters,
            weights_bytes=header.tensor_bytes,
            kv_bytes_per_token=estimate_kv_bytes_per_token(header, load.kv_type_used),
            n_ctx_train=header.n_ctx_train,
            n_layer=header.n_layer,
            n_embd=header.n_embd,
            layer_bytes=header.layer_bytes,
            output_bytes=header.output_bytes,
            n_head_kv=max(header.kv_heads),
            has_chat_template=header.has_chat_template,
            embeds_only=header.embeds_only,
            modalities=_modalities(projector),
            projector=printable(projector.file.path.name) if projector else "",
            n_ctx=n_ctx,
            n_slots=n_slots,
            reserved_slots=reserved_slots(
                n_slots,
                defaults.reserved_slots if options.reserved_slots is None else options.reserved_slots,
                parks=load.parking and not header.embeds_only,
            ),
            required_bytes=memory(n_slots).required_bytes,
            memory=memory(n_slots),
            numerics=load.numerics,
            options=load.changed(),
            adapters=adapters,
            keep_alive_s=defaults.keep_alive if options.keep_alive is None else options.keep_alive,
            pinned=options.pinned,
            min_replicas=options.replicas.min,
            max_replicas=options.replicas.max or 0,
            nodes=options.nodes,
            split_over=options.split,
            file_bytes=sum(part.size for part in files.parts) + (projector.file.size if projector else 0),
            # A node that fetches the model has not its adapters, and would fail the jobs that name one.
            fetchable=not adapters,
        )


def _modalities(projector: FoundProjector | None) -> tuple[Modality, ...]:
    header = projector.header.projector if projector else None
    return header.modalities if header else ("text",)


def _with_images(memory: ModelMemory, projector: FoundProjector | None) -> ModelMemory:
    header = projector.header if projector else None
    return with_projector(memory, header.projector, header.tensor_bytes) if header else memory


def _read(file: ModelFile) -> GgufHeader | ModelFault:
    try:
        return read_header(file.path)
    except ModelFileInvalid as error:
        return ModelFault(file=file.label, reason=printable(f"{error.data['reason']}; download it again or remove it"))
