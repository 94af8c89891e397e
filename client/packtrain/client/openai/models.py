"""Models as OpenAI lists them, with what clients look for beyond it: the context above all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from packtrain.broker.model_info import ModelInfo


def model_list(
    infos: Sequence[ModelInfo], created: int, *, may_use: Callable[[str], bool] = lambda _: True
) -> dict[str, Any]:
    """GET /v1/models.

    Args:
        created: Seconds; OpenAI's field that no client can do without and no model file answers.
        may_use: Which names to show.
    """
    known = {info.id: info for info in infos}
    shown = [name for name in sorted(known) if may_use(name)]
    return {"object": "list", "data": [model_object(known[name], known, created) for name in shown]}


def model_object(info: ModelInfo, known: Mapping[str, ModelInfo], created: int) -> dict[str, Any]:
    """GET /v1/models/{id}. An alias has the facts of its model."""
    real = known.get(info.alias_of, info)
    n_ctx = real.n_ctx or None  # of a remote model only its own server knows it
    facts = {"n_ctx": n_ctx, "n_ctx_train": real.n_ctx_train, "n_params": real.parameters}
    return {
        "id": info.id,
        "object": "model",
        "created": created,
        "owned_by": "packtrain",
        # The same number under the names of LM Studio and OpenRouter, of vLLM, and of llama-server (`meta.n_ctx`).
        "context_length": n_ctx,
        "max_model_len": n_ctx,
        "meta": {**facts, "size": real.weights_bytes},
        "architecture": real.architecture,
        "quantization": real.quantization,
        "type": "embeddings" if real.embeds_only else "vlm" if "vision" in real.modalities else "llm",
        "modalities": list(real.modalities),
        "capabilities": ["embedding"] if real.embeds_only else ["completion", *real.modalities[1:]],
        "alias_of": info.alias_of or None,
    }
