"""Estimates are sums that a reader can check by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from packtrain.workers.gguf import GgufHeader
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.memory import (
    PROCESS_BYTES,
    VOCAB_ENTRY_BYTES,
    default_slots,
    estimate_compute_bytes,
    estimate_kv_bytes_per_token,
    estimate_memory,
    estimate_slot_bytes,
    estimate_state_bytes,
    estimate_work_bytes,
)

pytestmark = pytest.mark.unit

MIB = 1024 * 1024

#: The shape of SmolLM2-135M; llama.cpp's own figures for it stand in the tests.
SMOLLM2 = GgufHeader(
    version=3,
    kind="model",
    architecture="llama",
    name="SmolLM2",
    n_layer=30,
    n_embd=576,
    n_head=9,
    n_head_kv=3,
    key_length=64,
    value_length=64,
    n_ff=1536,
    n_ctx_train=8192,
    n_vocab=49_152,
    has_chat_template=True,
    quantization="Q4_1",
    parameters=134_515_008,
    tensor_bytes=96_576_768,
    tensor_types={},
    matrix_types=frozenset(),
    split_no=0,
    split_count=1,
    hints={},
)


def with_hints(header: GgufHeader = SMOLLM2, **hints: int) -> GgufHeader:
    """`header` with hints; a double underscore stands for a dot."""
    return replace(header, hints={name.replace("__", "."): value for name, value in hints.items()})


def test_kv_of_a_grouped_query_model_is_llama_cpps_figure() -> None:
    assert estimate_kv_bytes_per_token(SMOLLM2) == 23_040
    assert estimate_kv_bytes_per_token(SMOLLM2) * 8192 == 180 * MIB


def test_quantised_kv_counts_whole_blocks() -> None:
    assert estimate_kv_bytes_per_token(SMOLLM2, "bf16") == 23_040
    assert estimate_kv_bytes_per_token(SMOLLM2, "q8_0") == 23_040 // 2 // 32 * 34
    assert estimate_kv_bytes_per_token(replace(SMOLLM2, n_layer=1, n_head_kv=1, key_length=33), "q8_0") == 4 * 34


def test_layers_without_attention_hold_no_kv() -> None:
    hybrid = replace(SMOLLM2, n_layer=4, n_head_kv=(0, 3, 0, 3))

    assert estimate_kv_bytes_per_token(hybrid) == 2 * 768


def test_only_every_nth_layer_of_an_interval_hybrid_holds_kv() -> None:
    assert estimate_kv_bytes_per_token(with_hints(full_attention_interval=3)) == 10 * 768


def test_layers_that_borrow_kv_hold_none() -> None:
    assert estimate_kv_bytes_per_token(with_hints(attention__shared_kv_layers=20)) == 10 * 768
    assert estimate_kv_bytes_per_token(with_hints(attention__shared_kv_layers=1000)) == 0


def test_latent_attention_caches_keys_only() -> None:
    shape = replace(SMOLLM2, n_layer=2, n_head_kv=1, key_length=576, value_length=512)

    latent = with_hints(shape, attention__key_length_mla=192, attention__value_length_mla=128)

    assert estimate_kv_bytes_per_token(latent) == 2 * 576 * 2


def test_plain_transformer_has_no_recurrent_state() -> None:
    assert estimate_state_bytes(SMOLLM2) == 0


def test_recurrent_state_does_not_grow_with_context() -> None:
    shape = replace(SMOLLM2, n_layer=24, n_head=0, n_head_kv=0, key_length=0, value_length=0)
    mamba = with_hints(shape, ssm__conv_kernel=4, ssm__inner_size=1536, ssm__state_size=16)

    assert estimate_kv_bytes_per_token(mamba) == 0
    assert estimate_state_bytes(mamba) == 4 * 24 * (3 * 1536 + 16 * 1536)
    assert estimate_slot_bytes(mamba, 256) == estimate_slot_bytes(mamba, 8192)


def test_only_recurrent_layers_of_a_hybrid_hold_state() -> None:
    shape = replace(SMOLLM2, n_layer=4, n_head_kv=(0, 3, 0, 3))

    assert estimate_state_bytes(with_hints(shape, shortconv__l_cache=3)) == 4 * 2 * 576 * 2


@pytest.mark.parametrize(("n_ubatch", "mib"), [(128, 24.5625), (512, 98.25), (2048, 393.0)])
def test_compute_with_logits_of_all_rows_is_llama_cpps_figure(n_ubatch: int, mib: float) -> None:
    assert estimate_compute_bytes(SMOLLM2, 4096, n_ubatch=n_ubatch, n_outputs=n_ubatch) == mib * MIB


@pytest.mark.parametrize(("n_cells", "mib"), [(4096, 17.5), (65_536, 77.5)])
def test_compute_with_logits_of_few_rows_is_llama_cpps_figure(n_cells: int, mib: float) -> None:
    assert estimate_compute_bytes(SMOLLM2, n_cells, n_outputs=64) == mib * MIB


@pytest.mark.parametrize(("n_ubatch", "n_cells", "mib"), [(512, 512, 28.5), (512, 4096, 32), (2048, 8192, 144)])
def test_compute_with_a_wide_feed_forward_is_llama_cpps_figure(n_ubatch: int, n_cells: int, mib: float) -> None:
    wide = replace(SMOLLM2, n_vocab=512, n_embd=512, n_ff=4096)

    assert estimate_compute_bytes(wide, n_cells, n_ubatch=n_ubatch) == mib * MIB


def test_compute_without_flash_attention_has_the_scores_of_all_heads() -> None:
    with_it = estimate_compute_bytes(SMOLLM2, 4096, n_outputs=64)

    without = estimate_compute_bytes(SMOLLM2, 4096, n_outputs=64, flash_attention=False)

    assert without - with_it == 4 * 512 * 4096 * 9


def test_compute_of_a_mixture_counts_its_active_experts() -> None:
    mixture = with_hints(replace(SMOLLM2, n_vocab=512, n_embd=256, n_ff=512), expert_count=8, expert_used_count=4)

    assert estimate_compute_bytes(mixture, 4096) == 18 * MIB


def test_estimate_is_process_and_weights_and_slots_and_compute() -> None:
    memory = estimate_memory(SMOLLM2, LoadOptions(), n_ctx=4096, n_slots=8)

    assert memory.host("weights") == 96_576_768
    assert memory.host("cache") == 8 * 4096 * 23_040
    assert memory.host("compute") == 13.5 * MIB + 2 * 512 * 4096
    assert memory.logits_bytes == 32 * 49_152 * 4
    assert memory.process_bytes == PROCESS_BYTES + 49_152 * VOCAB_ENTRY_BYTES
    assert memory.work_bytes == 512 * 1536 // 32 * 34
    assert memory.scratch_bytes == memory.host("compute") + memory.logits_bytes + memory.work_bytes
    parts = memory.host("weights") + memory.host("cache") + memory.scratch_bytes
    assert memory.estimated_bytes == memory.required_bytes == memory.process_bytes + parts


@pytest.mark.parametrize(
    ("quantization", "per_256"),
    [("F32", 0), ("F16", 512), ("BF16", 512), ("Q8_0", 272), ("Q4_K_M", 292), ("IQ4_XS", 292)],
)
def test_inputs_of_a_product_are_kept_in_the_format_of_its_weights(quantization: str, per_256: int) -> None:
    header = replace(SMOLLM2, quantization=quantization)

    assert estimate_work_bytes(header) == 512 * 1536 // 256 * per_256


def test_cache_type_changes_the_cache_and_nothing_else() -> None:
    plain = estimate_memory(SMOLLM2, LoadOptions(), n_ctx=1024, n_slots=2)
    small = estimate_memory(SMOLLM2, LoadOptions(kv_type="q8_0"), n_ctx=1024, n_slots=2)

    assert small.host("cache") * 32 == plain.host("cache") // 2 * 34
    assert small.estimated_bytes - small.host("cache") == plain.estimated_bytes - plain.host("cache")


def test_context_is_rounded_up_as_llama_cpp_rounds_it() -> None:
    assert estimate_slot_bytes(SMOLLM2, 1) == estimate_slot_bytes(SMOLLM2, 256) == 256 * 23_040
    assert estimate_slot_bytes(SMOLLM2, 257) == estimate_slot_bytes(SMOLLM2, 512)


@pytest.mark.parametrize(
    ("granted", "slots"),
    [(6400, 16), (6399, 8), (3200, 8), (3199, 4), (1600, 4), (800, 2), (799, 1), (400, 1), (399, 1), (0, 1)],
)
def test_default_slots_are_the_most_whose_cache_fits_in_a_quarter(granted: int, slots: int) -> None:
    assert default_slots(granted, 100, lambda n_slots: n_slots * 100) == slots


@pytest.mark.parametrize(("weights", "slots"), [(4800, 16), (4801, 8), (6001, 2), (6201, 1), (9000, 1)])
def test_default_slots_leave_room_for_the_weights(weights: int, slots: int) -> None:
    assert default_slots(6400, 100, lambda n_slots: weights + n_slots * 100) == slots


def test_a_model_without_a_cache_has_scratch_space_for_one_whole_text() -> None:
    bert = replace(SMOLLM2, architecture="bert", n_ctx_train=2048)

    memory = estimate_memory(bert, LoadOptions(), n_ctx=4096, n_slots=16)

    assert estimate_kv_bytes_per_token(bert) == 0
    assert (memory.host("weights"), memory.host("cache")) == (bert.tensor_bytes, 0)
    assert memory.host("compute") == 4 * 2048 * (3 * 1536 + 4 * 576) + 2 * 2048 * 2048
    assert memory.logits_bytes == 4 * 2048 * 49_152
    assert memory.work_bytes == 2048 * 1536 // 32 * 34


def test_a_model_that_only_embeds_has_one_cache_for_all_its_texts() -> None:
    memory = estimate_memory(with_hints(pooling_type=3), LoadOptions(), n_ctx=4096, n_slots=16)

    assert memory.host("cache") == 4096 * 23_040
    assert memory.host("compute") == 4 * 256 * (49_152 + 2 * 576)
    assert memory.logits_bytes == 4 * 256 * 49_152
