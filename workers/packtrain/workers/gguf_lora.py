"""LoRA files: whether one can be used, said from its header before llama.cpp opens it.

For each weight that it changes it holds a pair, `<weight>.lora_a` and `<weight>.lora_b`, whose product is added to the
weight. llama.cpp checks names and most shapes and refuses what is wrong. It does not check the following, and then ends
the process, or reads what it should not:

    alpha that is no 32-bit float, and texts that are none
    types that no matrix product takes
    the third dimension: one matrix for each expert of a mixture, else 1
    of the token embedding, whose pair is turned round, the rank

Adapters that begin to act at a mark in the prompt (aLoRA) load without a word, and would act on all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packtrain.workers.gguf_form import Form, TensorLine, shown

_F32 = 6  # enum gguf_type
_ALPHA, _TYPE, _INVOCATION = "adapter.lora.alpha", "adapter.type", "adapter.alora.invocation_tokens"
_TYPES = frozenset(
    {"F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"}
)


@dataclass(frozen=True, slots=True)
class LoraHeader:
    """What the header of an adapter tells on its use."""

    fault: str  # why no model could use it; empty: one may
    num_experts: frozenset[int]  # of the mixtures of experts that it is for; empty: it changes no expert


def read_lora(form: Form) -> LoraHeader:
    """What a well-formed file of kind `adapter` tells. Never raises."""
    kind, alpha = form.pairs.get(_TYPE, ""), form.kinds.get(_ALPHA, _F32)
    if kind != "lora":
        said = "a control vector" if form.pairs.get("general.architecture") == "controlvector" else shown(kind)
        return LoraHeader(f"it is {said}; only LoRA adapters can be used", frozenset())
    if _INVOCATION in form.pairs:
        return LoraHeader("it is an activated LoRA (aLoRA), which is not supported; use a plain one", frozenset())
    if alpha != _F32:
        return LoraHeader(f"{_ALPHA} is no 32-bit float; convert the adapter again", frozenset())
    pairs = [name for name in form.table if not name.endswith("_norm.weight")]  # those llama.cpp passes over
    faults = (_fault_of(name, form.table) for name in pairs)
    if fault := next(filter(None, faults), "" if pairs else "it changes no weight"):
        return LoraHeader(f"{fault}; convert the adapter again", frozenset())
    experts = {_dims(form.table[name])[2] for name in pairs if _is_of_experts(name)}
    return LoraHeader("", frozenset(experts))


def _fault_of(name: str, table: Mapping[str, TensorLine]) -> str:
    weight, mark, part = name.rpartition(".lora_")
    if part not in ("a", "b") or ".lora_" in weight:
        return f"its tensor {shown(name)} is no part of a LoRA"
    first, second = (table.get(f"{weight}{mark}{letter}") for letter in "ab")
    if first is None or second is None:
        return f"of {shown(weight)} it has {shown(name)} alone"
    if odd := next((line.type_name for line in (first, second) if line.type_name not in _TYPES), ""):
        return f"{shown(weight)} has the type {odd}, which no product takes"
    a, b = _dims(first), _dims(second)
    rank = a[0] if weight.endswith("token_embd.weight") else a[1]
    if rank != b[0]:
        return f"the two parts of {shown(weight)} have ranks {rank} and {b[0]}"
    if a[2:] != b[2:] or a[3] != 1 or (a[2] != 1 and not _is_of_experts(name)):
        return f"the two parts of {shown(weight)} have the shapes {first.dims} and {second.dims}"
    return ""


def _is_of_experts(name: str) -> bool:
    return "exps." in name


def _dims(line: TensorLine) -> tuple[int, ...]:
    return (*line.dims, 1, 1, 1, 1)[:4]
