"""Memory: how many bytes an instance will take, said from the GGUF header before anything is loaded.

    required = process                              Python, its libraries, and the vocabulary
             + weights                              sum of the tensors' bytes
             + slots x (context x KV + state)       what the model remembers of each sequence
             + compute                              scratch space of one step
             + outputs x vocabulary x 4             logits of as many rows as one step may ask for
             + work                                 inputs of one matrix product in the format of its weights

This takes microseconds, and for a plain transformer with flash attention it is llama.cpp's own figure to 0.1 MiB
(SmolLM2-135M with 4 slots of 1,024 tokens: weights 136.4, KV 90.00, compute 17.51 MiB). Other designs are estimated
from above where that is cheap: sliding-window layers count in full, which is what llama.cpp takes unless told
otherwise. It stands until llama.cpp itself has been asked (`memory_probe`), and what loads really took corrects both
(`memory_book`).
"""

from __future__ import annotations

from collections.abc import Callable

from packtrain.broker.model_info import BufferMemory, ModelMemory
from packtrain.workers.ggml_types import GGML_TYPES
from packtrain.workers.gguf import GgufHeader
from packtrain.workers.load_options import N_BATCH, KvType, LoadOptions, max_outputs, rows_per_step, rows_to_embed

SLOT_STEPS = (16, 8, 4, 2, 1)
#: Share of a node's budget that the KV of one instance may take by default: the rest is for weights and neighbours.
KV_SHARE = 4
#: llama.cpp rounds the context of each sequence up to a multiple of this (`llama_context`, GGML_PAD(n_ctx, 256)).
CONTEXT_STEP = 256  # tokens
FLOAT_BYTES = 4
HALF_BYTES = 2
#: Resident memory of an instance process that has loaded nothing yet: 71 MiB with llama.cpp, numpy and Celery.
PROCESS_BYTES = 72 * 1024 * 1024
#: What llama.cpp keeps of one token of the vocabulary: 190 bytes without merges, 340 with them (SmolLM2).
VOCAB_ENTRY_BYTES = 350

_BLOCKS = {name.lower(): (block, size) for name, block, size in GGML_TYPES.values()}


def estimate_kv_bytes_per_token(header: GgufHeader, kv_type: KvType = "f16") -> int:
    """Bytes of KV cache for one token of one sequence.

    Sum over layers of kv_heads x (key_length + value_length) x bytes per element; for grouped-query models `kv_heads`
    is smaller than `heads` (Ainslie et al., 2023, arXiv:2305.13245). Layers without attention hold none, nor do
    layers that borrow the KV of others; with latent attention (MLA) only K is held.

    Args:
        header: Header of the whole model (of part 1 where it is split).
        kv_type: Type of both caches. `f16` and `bf16` take the same.
    """
    layers = _attention_layers(header)
    lengths = (header.key_length,) if header.is_mla else (header.key_length, header.value_length)
    return sum(_row_bytes(heads * length, kv_type) for heads in layers for length in lengths)


def estimate_state_bytes(header: GgufHeader) -> int:
    """Bytes that the recurrent layers of Mamba, RWKV and hybrid models hold per sequence, whatever its length.

    4 x recurrent layers x (convolution window + state), llama.cpp's `n_embd_r` and `n_embd_s` (src/llama-hparams.cpp):
    (conv_kernel - 1) x (inner_size + 2 x group_count x state_size) + state_size x inner_size for Mamba, and the like.
    0 for a plain transformer.
    """
    return FLOAT_BYTES * _recurrent_layers(header) * _state_floats(header)


def estimate_compute_bytes(
    header: GgufHeader, n_cells: int, *, n_ubatch: int = N_BATCH, n_outputs: int = N_BATCH, flash_attention: bool = True
) -> int:
    """Bytes of scratch space for one step of at most `n_ubatch` rows.

    The larger of the two widest moments of a step, each in float32:

        logits        4 x (n_outputs x n_vocab + n_ubatch x 2 x n_embd)
        feed-forward  4 x n_ubatch x (3 x n_ff + 4 x n_embd)  + the attention mask, 2 x n_ubatch x n_cells

    where n_ff counts all active experts of a mixture. Found by comparison with llama.cpp's own `no_alloc` figures for
    the CPU, n_ubatch 128 to 2048 and n_cells 512 to 65536: equal within 0.05 MiB for SmolLM2-135M and for dense and
    mixture models whose feed-forward is the wider; 16 % above for one that is as narrow in all places. Without flash
    attention the scores add 4 x n_ubatch x n_cells x heads, which is from above (SmolLM2: 89.5 for 86.4 MiB).

    Args:
        header: Header of the whole model.
        n_cells: Cells of the cache that one row may look at, tokens: those of one slot.
        n_ubatch: Most rows of one step.
        n_outputs: Most rows of one step that have logits.
    """
    n_ff = _active_n_ff(header)
    logits = FLOAT_BYTES * (n_outputs * header.n_vocab + n_ubatch * 2 * header.n_embd)
    feed_forward = FLOAT_BYTES * n_ubatch * (3 * n_ff + 4 * header.n_embd)
    scores = 0 if flash_attention else FLOAT_BYTES * n_ubatch * n_cells * header.n_head
    return max(logits, feed_forward + HALF_BYTES * n_ubatch * n_cells + scores)


def estimate_work_bytes(header: GgufHeader, n_ubatch: int = N_BATCH) -> int:
    """Bytes for the inputs of the widest matrix product, which the CPU converts to the format that the weights need.

    n_ubatch x n_ff elements of 2 bytes for F16 and BF16 weights, of 34/32 bytes (Q8_0) or 292/256 (Q8_K) for quantised
    ones (`ggml_graph_plan`). llama.cpp takes it at the first large step and names it in no sum of its own: 7.4 MiB for
    a feed-forward of 14,336.
    """
    match header.quantization:
        case "F32":
            block, size = 1, 0
        case "F16" | "BF16":
            block, size = 1, HALF_BYTES
        case name if name.startswith("IQ") or "_K" in name:
            block, size = 256, 292
        case _:
            block, size = 32, 34
    return n_ubatch * max(_active_n_ff(header), header.n_embd) // block * size


def estimate_slot_bytes(header: GgufHeader, n_ctx: int, kv_type: KvType = "f16") -> int:
    """Bytes that one more slot of `n_ctx` tokens takes: KV and recurrent state."""
    padded = -(-n_ctx // CONTEXT_STEP) * CONTEXT_STEP
    return padded * estimate_kv_bytes_per_token(header, kv_type) + estimate_state_bytes(header)


def estimate_memory(header: GgufHeader, options: LoadOptions, *, n_ctx: int, n_slots: int) -> ModelMemory:
    """What an instance takes, all of it counted in the machine's own memory.

    A model that only embeds has one cache for all texts of a batch; without a cache it takes a text in one piece. What
    a generator that also embeds takes for that comes on top, when it does.

    Args:
        header: Header of the whole model, see `gguf.merge_parts` where it is split.
        n_ctx: Context of one slot, tokens.
        n_slots: Sequences at once.
    """
    n_rows, n_outputs, n_caches, n_cells = rows_per_step(n_slots), max_outputs(n_slots), n_slots, n_ctx
    if header.embeds_only:
        max_tokens = n_ctx if header.has_cache else min(n_ctx, header.n_ctx_train)
        n_rows = n_outputs = rows_to_embed(max_tokens, is_whole=not header.has_cache)
        n_caches, n_cells = 1, max(n_rows, max_tokens)
    compute = estimate_compute_bytes(
        header,
        n_cells,
        n_ubatch=n_rows,
        n_outputs=n_outputs if header.has_cache else 0,  # BERT and its kin compute no logits, but have room for them
        flash_attention=options.flash_attention is not False,
    )
    buffer = BufferMemory(
        weights=header.tensor_bytes,
        cache=n_caches * estimate_slot_bytes(header, n_cells, options.kv_type_used),
        compute=compute,
    )
    return ModelMemory(
        process_bytes=PROCESS_BYTES + VOCAB_ENTRY_BYTES * header.n_vocab,
        logits_bytes=FLOAT_BYTES * n_outputs * header.n_vocab,
        work_bytes=estimate_work_bytes(header, n_rows),
        buffers=(buffer,),
    )


def default_slots(granted_bytes: int, slot_bytes: int, required_bytes: Callable[[int], int]) -> int:
    """The most of 16, 8, 4, 2, 1 slots for an instance that may have `granted_bytes`; 1 where not even that fits.

    The slots may take a quarter, so that another model fits beside this one: llama.cpp touches all of it at the load,
    1.4 GiB for 16 slots of 4,096 tokens of SmolLM2. And the instance must fit as a whole.

    Args:
        granted_bytes: The node's budget, or the machine's free memory where that is less.
        slot_bytes: Of one slot.
        required_bytes: Of a whole instance with so many slots.
    """
    room = granted_bytes // KV_SHARE
    fits = (n for n in SLOT_STEPS if n * slot_bytes <= room and required_bytes(n) <= granted_bytes)
    return next(fits, 1)


def _active_n_ff(header: GgufHeader) -> int:
    hint = header.hints.get
    return max(header.n_ff, hint("expert_used_count", 0) * hint("expert_feed_forward_length", header.n_ff))


def _row_bytes(elements: int, kv_type: KvType) -> int:
    block, size = _BLOCKS[kv_type]
    return -(-elements // block) * size


def _attention_layers(header: GgufHeader) -> list[int]:
    """KV heads of each layer that holds KV."""
    if not header.has_cache:
        return []
    layers = list(header.kv_heads)
    layers = layers[: max(0, len(layers) - header.hints.get("attention.shared_kv_layers", 0))]
    interval = header.hints.get("full_attention_interval", 0) or 1
    return [heads for number, heads in enumerate(layers, start=1) if heads and number % interval == 0]


def _recurrent_layers(header: GgufHeader) -> int:
    # Hybrids have recurrent layers in place of attention, or (Falcon-H1) in each layer beside it.
    return header.n_layer - len(_attention_layers(header)) or header.n_layer


def _state_floats(header: GgufHeader) -> int:
    hint = header.hints.get
    if head_size := hint("wkv.head_size", 0):  # RWKV
        return header.n_embd * (hint("token_shift_count", 2) + head_size)
    if window := hint("shortconv.l_cache", 0):  # LFM2
        return header.n_embd * (window - 1)
    inner, state = hint("ssm.inner_size", 0), hint("ssm.state_size", 0)  # Mamba, and delta nets alike
    window = max(0, hint("ssm.conv_kernel", 0) - 1)
    return window * (inner + 2 * hint("ssm.group_count", 0) * state) + state * inner
