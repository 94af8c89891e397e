"""The fleet's models as Ollama lists them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.states import InstanceState
from packtrain.client.dialects.ollama.form import moment


def tags(infos: Mapping[str, ModelInfo], since: float) -> dict[str, Any]:
    """GET /api/tags.

    Args:
        infos: By id.
        since: Seconds; what stands for the time when a file was changed, which the fleet does not tell.
    """
    return {"models": [{**_entry(infos[name], infos), "modified_at": moment(since)} for name in sorted(infos)]}


def running(infos: Mapping[str, ModelInfo], instances: Sequence[InstanceBeat]) -> dict[str, Any]:
    """GET /api/ps: what is loaded, each instance by itself, with its shards on other nodes."""
    elsewhere = Counter[str]()
    for each in instances:
        if each.is_shard and not each.state.is_terminal:
            elsewhere[each.group] += each.resident_bytes or each.reserved_bytes
    return {
        "models": [
            {
                **_entry(infos[each.model], infos),
                "size": (each.resident_bytes or each.reserved_bytes) + elsewhere[each.instance],
                "size_vram": sum(
                    part.weights + part.cache + part.compute
                    for part in infos[each.model].memory.buffers
                    if not part.on_host
                ),
                "context_length": each.n_ctx,
                "expires_at": moment(_expires_s(each, infos[each.model])),
                "packtrain": {"node": each.node, "instance": each.instance, "n_slots": each.n_slots},
            }
            for each in instances
            if each.state is InstanceState.READY and each.model in infos
        ]
    }


def shown(info: ModelInfo, infos: Mapping[str, ModelInfo], since: float) -> dict[str, Any]:
    """POST /api/show."""
    real = infos.get(info.alias_of, info)
    architecture = real.architecture or "unknown"
    return {
        "modelfile": f"# {info.id}: {real.file}\n",
        "parameters": "",
        "template": "",
        "license": "",
        "details": _details(real),
        "model_info": {
            "general.architecture": architecture,
            "general.parameter_count": real.parameters,
            # What a request may use, which is what clients read it for; the file may allow more.
            f"{architecture}.context_length": real.n_ctx,
            f"{architecture}.block_count": real.n_layer,
            f"{architecture}.attention.head_count_kv": real.n_head_kv,
        },
        "capabilities": ["embedding"] if real.embeds_only else ["completion", "tools", *real.modalities[1:]],
        "modified_at": moment(since),
    }


def _entry(info: ModelInfo, infos: Mapping[str, ModelInfo]) -> dict[str, Any]:
    real = infos.get(info.alias_of, info)
    name = f"{info.id}:latest"
    size = real.file_bytes or real.weights_bytes
    # Clients cut it to twelve digits and compare it. Files are not hashed before they are used, so not of the content.
    digest = hashlib.sha256(f"{real.id}\0{real.file}\0{size}".encode()).hexdigest()
    return {"name": name, "model": name, "size": size, "digest": digest, "details": _details(real)}


def _details(info: ModelInfo) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": info.architecture,
        "families": [info.architecture] if info.architecture else [],
        "parameter_size": _in_words(info.parameters),
        "quantization_level": info.quantization,
    }


def _in_words(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.2f}".rstrip("0").rstrip(".") + unit
    return str(count) if count else ""


_NEVER_S = 100 * 365 * 24 * 3600.0


def _expires_s(instance: InstanceBeat, info: ModelInfo) -> float:
    """When it leaves if nobody asks it for anything. One that stays has a date far away, as at Ollama."""
    stays = info.pinned or info.keep_alive_s < 0
    last_s = max(instance.last_used_ms, instance.ready_ms) / 1000
    return last_s + (_NEVER_S if stays else info.keep_alive_s)
