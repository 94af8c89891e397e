"""Scripted models as files, so that tests and benchmarks run whole fleets without weights.

A file `<name>.scripted.json` in a model folder is a model: {"n_slots": 4, "n_ctx": 512, "step_ms": 0, "row_ms": 0,
"required_mib": 1, "load_ms": 0, "fails": "", "embeds_only": false, "adapters": {"name": 1.0}}; `ScriptedModel` has all.
Only an agent started with PACKTRAIN_SCRIPTED=1 looks for them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from packtrain.broker.errors import ModelLoadFailed, NotDeterministic
from packtrain.broker.fields import Numerics
from packtrain.broker.ids import ModelId, slug
from packtrain.broker.model_info import AdapterInfo, ModelInfo
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.gguf_projector import ProjectorHeader

SUFFIX = ".scripted.json"
MIB = 1024 * 1024

_TAKEN: list[bytes] = []


class ScriptedModel(BaseModel):
    """The file's content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_slots: int = 4
    reserved_slots: int = 0
    n_ctx: int = 512
    step_ms: float = 0
    row_ms: float = 0
    load_ms: float = 0
    required_mib: int = 1
    embeds_only: bool = False
    keep_alive_s: float = 300
    pinned: bool = False
    min_replicas: int = 0
    max_replicas: int = 0
    nodes: dict[str, str] = Field(default_factory=dict)  # labels that a node must have
    adapters: dict[str, float] = Field(default_factory=dict)  # names to scales
    sees: bool = False
    hears: bool = False
    fails: str = ""  # not empty: the load fails with this reason
    dies: int = 0  # a signal that ends the process while it loads; 9: as the kernel does where memory runs out
    takes_mib: int = 0  # memory that it really takes
    not_deterministic: str = ""  # not empty: why it cannot be deterministic


def scripted_models(folders: Sequence[Path]) -> dict[ModelId, tuple[ModelInfo, Path]]:
    """Scripted models in these folders, by id."""
    found = {}
    for folder in folders:
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            script = ScriptedModel.model_validate_json(path.read_text())
            model = ModelId(slug(path.name.removesuffix(SUFFIX)))
            info = ModelInfo(
                id=model,
                file=path.name,
                architecture="scripted",
                has_chat_template=True,
                embeds_only=script.embeds_only,
                modalities=ProjectorHeader(script.sees, script.hears, 0, 0).modalities,
                n_ctx=script.n_ctx,
                n_slots=script.n_slots,
                reserved_slots=script.reserved_slots,
                required_bytes=script.required_mib * MIB,
                keep_alive_s=script.keep_alive_s,
                pinned=script.pinned,
                min_replicas=script.min_replicas,
                max_replicas=script.max_replicas,
                nodes=script.nodes,
                file_bytes=path.stat().st_size,
                fetchable=not script.adapters,
                adapters=tuple(AdapterInfo(name=name, scale=scale) for name, scale in script.adapters.items()),
            )
            found[model] = (info, path)
    return found


def load_scripted(path: Path, *, n_slots: int, n_ctx: int, numerics: Numerics = "fast") -> ScriptedBackend:
    """The backend that such a file describes. Takes `load_ms`."""
    script = ScriptedModel.model_validate(json.loads(path.read_text()))
    time.sleep(script.load_ms / 1000)
    if script.dies:
        os.kill(os.getpid(), script.dies)
    _TAKEN.append(b"\1" * (script.takes_mib * MIB))
    if script.fails:
        raise ModelLoadFailed(f"scripted: {script.fails}")
    if numerics == "deterministic" and script.not_deterministic:
        raise NotDeterministic(model=path.name.removesuffix(SUFFIX), reason=script.not_deterministic)
    return ScriptedBackend(
        n_slots=n_slots,
        n_ctx=n_ctx,
        step_s=script.step_ms / 1000,
        row_s=script.row_ms / 1000,
        recipe="fast" if numerics == "fast" else "batched",
        embeds_only=script.embeds_only,
        adapters=script.adapters,
        sees=script.sees,
        hears=script.hears,
    )
