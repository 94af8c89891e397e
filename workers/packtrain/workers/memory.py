"""Memory: how many bytes an instance will take, said before anything is loaded.

    required = weights                              sum of the tensors' bytes
             + slots x (context x KV + state)       what the model remembers of each sequence
             + compute                              scratch space of one step
             + slots x vocabulary x 4               one row of logits per sequence

Everything comes from the GGUF header, in microseconds. For a plain transformer with flash attention the sum is
llama.cpp's own figure to the byte (SmolLM2-135M: weights 92.10, KV 180.00 at 8192 tokens, compute 98.25 MiB). Other
designs are estimated from above where that is cheap: sliding-window layers count in full, which is what llama.cpp
takes unless told otherwise. What loads really took corrects the rest; that is the coordinator's part.
"""

from __future__ import annotations

from typing import Literal

from packtrain.workers.ggml_types import GGML_TYPES
from packtrain.workers.gguf import GgufHeader

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

SLOT_STEPS = (16, 8, 4, 2, 1)
#: Share of a node's budget that the KV of one instance may take by default: the rest is for weights and neighbours.
KV_SHARE = 4
#: llama.cpp rounds the context of each sequence up to a multiple of this (`llama_context`, GGML_PAD(n_ctx, 256)).
CONTEXT_STEP = 256  # tokens
FLOAT_BYTES = 4
HALF_BYTES = 2

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


def estimate_compute_bytes(header: GgufHeader, n_ubatch: int = 512, n_ctx: int = 4096) -> int:
    """Bytes of scratch space for one step of at most `n_ubatch` tokens.

    The larger of the two widest moments of a step, each in float32 per token:

        logits        4 x n_ubatch x (n_vocab + 2 x n_embd)
        feed-forward  4 x n_ubatch x (3 x n_ff + 4 x n_embd)  + the attention mask, 2 x n_ubatch x n_ctx

    where n_ff counts all active experts of a mixture. Found by comparison with llama.cpp's own `no_alloc` figures for
    the CPU, n_ubatch 128 to 2048 and n_ctx 512 to 8192: equal within 0.05 MiB for SmolLM2-135M and for dense and
    mixture models whose feed-forward is the wider; 16 % above for one that is as narrow in all places. Holds for flash
    attention, the default; without it add 4 x n_ubatch x n_ctx x heads.

    Args:
        header: Header of the whole model.
        n_ubatch: Most tokens of one step.
        n_ctx: Context of one slot, tokens, each sequence in a KV stream of its own.
    """
    hint = header.hints.get
    n_ff = max(header.n_ff, hint("expert_used_count", 0) * hint("expert_feed_forward_length", header.n_ff))
    logits = FLOAT_BYTES * n_ubatch * (header.n_vocab + 2 * header.n_embd)
    feed_forward = FLOAT_BYTES * n_ubatch * (3 * n_ff + 4 * header.n_embd)
    return max(logits, feed_forward + HALF_BYTES * n_ubatch * n_ctx)


def estimate_slot_bytes(header: GgufHeader, n_ctx: int) -> int:
    """Bytes that one more slot of `n_ctx` tokens takes: KV, recurrent state and a row of logits."""
    padded = -(-n_ctx // CONTEXT_STEP) * CONTEXT_STEP
    per_token = estimate_kv_bytes_per_token(header)
    return padded * per_token + estimate_state_bytes(header) + FLOAT_BYTES * header.n_vocab


def required_bytes(header: GgufHeader, n_ctx: int, n_slots: int) -> int:
    """Bytes that an instance takes in all. What a generator that also embeds takes for that comes on top, when it does.

    A model that only embeds has one cache for all texts of a batch; without a cache it takes a text in one piece.

    Args:
        header: Header of the whole model, see `gguf.merge_parts` where it is split.
        n_ctx: Context of one slot, tokens.
        n_slots: Sequences at once.
    """
    slots = (1 if header.embeds_only else n_slots) * estimate_slot_bytes(header, n_ctx)
    n_ubatch = 512 if header.has_cache else max(512, n_ctx)
    return header.tensor_bytes + slots + estimate_compute_bytes(header, n_ubatch, n_ctx=n_ctx)


def default_slots(budget_bytes: int, kv_bytes_per_slot: int) -> int:
    """The largest of 16, 8, 4, 2, 1 slots whose KV fits in a quarter of the budget; 1 where not even that fits."""
    room = budget_bytes // KV_SHARE
    return next((slots for slots in SLOT_STEPS if slots * kv_bytes_per_slot <= room), 1)


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
