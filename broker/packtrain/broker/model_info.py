"""A model as a node's catalog describes it, and what it takes of the memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from packtrain.broker.fields import Numerics, Report, SafeId
from packtrain.broker.media import Modality


class BufferMemory(Report):
    """What a model keeps in one kind of buffer, bytes."""

    buffer: str = Field("CPU", description="llama.cpp's name: CPU, CPU_REPACK (weights in another order), CUDA0")
    on_host: bool = Field(True, description="in the memory that the node's budget is about")
    weights: int = 0
    cache: int = Field(0, description="KV and recurrent state of all slots")
    compute: int = Field(0, description="scratch space of one step")


class ModelMemory(Report):
    """What an instance of a model takes, before anything is loaded; and what one took, where one was. Bytes."""

    source: Literal["header", "llama.cpp"] = Field("header", description="who says so")
    process_bytes: int = Field(0, description="Python, libraries and vocabulary")
    logits_bytes: int = Field(0, description="of as many rows as one step may ask for")
    work_bytes: int = Field(0, description="inputs of one matrix product in the format of its weights")
    adapter_bytes: int = Field(0, description="weights of all its LoRA adapters")
    image_bytes: int = Field(0, description="weights and scratch space of its projector")
    picture_bytes: int = Field(0, description="of the largest picture while it is read")
    buffers: tuple[BufferMemory, ...] = ()
    measured_bytes: int = Field(0, description="most that an instance like this took on this node; 0: none was loaded")
    factor: float = Field(1, description="measured by estimated, of the same model with other slots or context")

    def host(self, part: Literal["weights", "cache", "compute"]) -> int:
        """Bytes of one part in the machine's own memory."""
        return sum(int(getattr(buffer, part)) for buffer in self.buffers if buffer.on_host)

    @property
    def scratch_bytes(self) -> int:
        """What is taken by the first steps and pictures, not by the load."""
        return self.host("compute") + self.logits_bytes + self.work_bytes + self.picture_bytes

    @property
    def estimated_bytes(self) -> int:
        """In the machine's own memory, before any correction."""
        loaded = self.process_bytes + self.host("weights") + self.host("cache")
        return loaded + self.adapter_bytes + self.image_bytes + self.scratch_bytes

    @property
    def by_device(self) -> dict[str, int]:
        """The estimate in each memory: the machine's own, `ram`, and devices by llama.cpp's names."""
        sizes = {"ram": self.estimated_bytes} if self.estimated_bytes else {}
        for buffer in self.buffers:
            if not buffer.on_host:
                taken = buffer.weights + buffer.cache + buffer.compute
                sizes[buffer.buffer] = sizes.get(buffer.buffer, 0) + taken
        return sizes

    @property
    def required_bytes(self) -> int:
        """What to reserve: what it took before, else the estimate as others of this model correct it."""
        return self.measured_bytes or round(self.estimated_bytes * self.factor)


class AdapterInfo(Report):
    """A LoRA adapter of a model, as packtrain.toml names it."""

    name: SafeId
    file: str = Field("", description="file name, for people; never a path")
    scale: float = Field(1, description="of jobs that name it without one")
    weights_bytes: int = 0
    fault: str = Field("", description="why it cannot be used; empty: it can")


class ModelInfo(Report):
    """One model as a node's catalog describes it. Sizes in bytes."""

    v: Literal[1] = 1
    id: SafeId
    alias_of: str = Field("", description="this id is only another name of that model; the other fields are unset")
    targets: tuple[SafeId, ...] = Field((), description="of an alias: models that may answer, the preferred one first")
    spill_after_s: float | None = Field(
        None, description="of an alias: jobs that would wait longer go to the next target; null: only after a failure"
    )
    remote: str = Field("", description="host and model name of the server that answers; empty: it is loaded here")
    file: str = Field("", description="file name, for people; never a path")
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    n_ctx_train: int = 0
    n_layer: int = 0
    n_head_kv: int = 0
    n_embd: int = Field(0, description="elements of a hidden state")
    layer_bytes: tuple[int, ...] = Field((), description="weights of each layer")
    output_bytes: int = Field(0, description="of the matrix that makes logits")
    has_chat_template: bool = False
    embeds_only: bool = Field(False, description="it makes vectors of texts, and answers nothing")
    modalities: tuple[Modality, ...] = Field(("text",), description="what may stand in a prompt")
    projector: str = Field("", description="file name of what turns images or sounds into input; empty: none")
    n_ctx: int = Field(4096, description="context of one slot, tokens")
    n_slots: int = 8
    reserved_slots: int = Field(0, description="that bulk jobs leave to interactive ones")
    required_bytes: int = Field(0, description="of the machine's own memory, in all: measured, else estimated")
    memory: ModelMemory = ModelMemory()
    numerics: Numerics = Field("fast", description="how it is loaded when no job asks for more")
    options: dict[str, Any] = Field(default_factory=dict, description="load options that are not the defaults")
    adapters: tuple[AdapterInfo, ...] = ()
    keep_alive_s: float = Field(300, description="unload after this long without a job; negative: never")
    pinned: bool = False
    min_replicas: int = Field(0, description="keep at least this many loaded, job or no job")
    max_replicas: int = Field(0, description="load no more than this by ourselves; 0: one on each node")
    nodes: dict[str, str] = Field(default_factory=dict, description="labels that a node must have to load it")
    split_over: tuple[SafeId, ...] = Field((), description="nodes that always hold it together; empty: where it fits")
    file_bytes: int = Field(0, description="of all its files; 0: not known")
    fetchable: bool = Field(False, description="another node may read its files from here")

    def offer(self, *, with_layers: bool = False) -> ModelInfo:
        """What placement needs of it, which is a tenth of the bytes.

        Args:
            with_layers: Also what tells how it would be split.
        """
        split = {} if with_layers else {"memory": ModelMemory(), "layer_bytes": ()}
        return self.model_copy(update={"adapters": (), "options": {}, **split})

    @property
    def file_key(self) -> str:
        """Equal for equal files, as far as is known without reading them: sha256 of what describes one."""
        said = (
            self.id, self.file, self.file_bytes, self.architecture, self.quantization, self.parameters, self.layer_bytes
        )  # fmt: skip
        return hashlib.sha256(repr(said).encode()).hexdigest()


def model_named(name: str, models: Iterable[ModelInfo]) -> ModelInfo | None:
    """The model that jobs of this name are for, of several targets the preferred one; None: nobody offers it."""
    known = {info.id: info for info in models}
    info = known.get(name)
    return known.get(info.alias_of) if info and info.alias_of else info


class ModelFault(Report):
    """A file in a model folder that cannot be offered, and why."""

    file: str
    reason: str
