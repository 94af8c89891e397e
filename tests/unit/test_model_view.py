"""What `packtrain models show` says of a model."""

from __future__ import annotations

import pytest
from rich.console import Console

from packtrain.broker.model_info import BufferMemory, ModelInfo, ModelMemory
from packtrain.client.cli.model_commands import memory_table, model_facts

pytestmark = pytest.mark.unit

MIB = 1024 * 1024
MEMORY = ModelMemory(
    source="llama.cpp",
    process_bytes=90 * MIB,
    logits_bytes=1 * MIB,
    work_bytes=2 * MIB,
    buffers=(
        BufferMemory(weights=100 * MIB, cache=80 * MIB, compute=7 * MIB),
        BufferMemory(buffer="CUDA0", on_host=False, weights=300 * MIB, cache=20 * MIB, compute=40 * MIB),
    ),
)


def info(**memory: object) -> ModelInfo:
    known = MEMORY.model_copy(update=memory)
    return ModelInfo(id="m", n_ctx=1000, n_slots=5, memory=known, required_bytes=known.required_bytes)


def shown(model: ModelInfo) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(memory_table(model))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_estimate_is_shown_part_by_part_with_the_cache_of_a_slot_and_of_tokens() -> None:
    assert shown(info()) == [
        "process 90.0 MiB Python, libraries, vocabulary",
        "weights 100.0 MiB",
        "cache 80.0 MiB 20.0 MiB per slot, 20.0 MiB per 1,000 tokens",
        "scratch space 10.0 MiB of one step",
        "in all 280.0 MiB estimated by llama.cpp, without a load",
        "on CUDA0 360.0 MiB not in the machine's own memory",
        "reserved 280.0 MiB when it is loaded",
    ]


def test_measured_stands_beside_the_estimate() -> None:
    assert shown(info(measured_bytes=294 * MIB))[-2:] == [
        "measured 294.0 MiB 105.0% of the estimate, loaded just like this",
        "reserved 294.0 MiB when it is loaded",
    ]


def test_measured_of_other_contexts_is_a_factor() -> None:
    assert shown(info(factor=1.05))[-2:] == [
        "measured × 1.050 of the estimate, with other slots or context",
        "reserved 294.0 MiB when it is loaded",
    ]


def test_model_that_estimates_nothing_shows_what_is_reserved() -> None:
    scripted = ModelInfo(id="m", required_bytes=MIB)

    assert shown(scripted) == ["reserved 1.0 MiB when it is loaded"]


def test_facts_for_programs_hold_the_sums() -> None:
    facts = model_facts(info(), [])

    assert facts["estimate"]["total_bytes"] == facts["required_bytes"] == 280 * MIB
    assert facts["estimate"]["cache_bytes_per_slot"] == 20 * MIB
    assert facts["estimate"]["cache_bytes_per_1000_tokens"] == 20 * MIB
    assert facts["instances"] == []
