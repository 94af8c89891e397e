"""What a waiting job is told when its model cannot be loaded anywhere: what is missing, by how much, and the remedy."""

from __future__ import annotations

from packtrain.broker.beats import NodeBeat
from packtrain.broker.errors import ModelGone, ModelTooLarge
from packtrain.broker.ids import ModelId
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.placement.snapshot import MIB
from packtrain.broker.placement.view import View


def no_offer(model: ModelId, view: View) -> ModelGone | str:
    """No live node may load it: how long its jobs wait yet, or that they have waited long enough."""
    now = view.now
    missing_ms = now.now_ms - now.missing_since.get(model, now.now_ms)
    closed = next((n for n in now.nodes if (n.quarantine or n.draining) and model in n.models), None)
    why = "is in quarantine: " + closed.quarantine if closed and closed.quarantine else "drains"
    held = f"{closed.node} has its file, and {why}" if closed else ""
    if missing_ms >= now.offer_wait_ms:
        known = sorted({known for node in view.open_nodes.values() for known in node.models})
        return ModelGone(model=model, waited_s=missing_ms / 1000, known=known, held=held)
    left = f"its jobs fail in {(now.offer_wait_ms - missing_ms) / 1000:.0f} s"
    if held:
        return f"{held}; {left}"
    if labels := view.rules(model).labels:
        wanted = ", ".join(f"{name}={value}" for name, value in labels)
        return f"no live node has its file and the labels {wanted}; {left}"
    return f"no live node has its file; {left}"


def too_large(info: ModelInfo, largest: NodeBeat, *, over_several: str = "") -> ModelTooLarge:
    """Not even an empty node could hold it: the shortfall, and the smallest change that would fit.

    Args:
        info: As the largest node would load it.
        over_several: Why not even several nodes together could; empty: there is one node.
    """
    short = info.required_bytes - largest.memory_budget
    kv_per_slot = info.kv_bytes_per_token * info.n_ctx
    fixed = info.required_bytes - kv_per_slot * info.n_slots
    remedy = "use a smaller quantisation or a node with more memory"
    if kv_per_slot and (slots := (largest.memory_budget - fixed) // kv_per_slot) >= 1:
        remedy = f"set slots = {min(slots, info.n_slots)} for it in packtrain.toml"
    elif info.kv_bytes_per_token and (context := (largest.memory_budget - fixed) // info.kv_bytes_per_token) >= 256:
        remedy = f"set slots = 1 and context = {context // 256 * 256} for it in packtrain.toml"
    if over_several:
        remedy += f", or let several nodes hold it together, of which now: {over_several}"
    return ModelTooLarge(
        f"{info.id!r} needs {info.required_bytes // MIB} MiB ({info.n_slots} slots of {info.n_ctx} tokens), the "
        f"largest node {largest.node} may use {largest.memory_budget // MIB} MiB, {short // MIB + 1} less; {remedy}",
        model=info.id,
        required_bytes=info.required_bytes,
        short_bytes=short,
    )
