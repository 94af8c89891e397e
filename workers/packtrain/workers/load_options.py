"""Load options: how a model is laid out in memory, as the operator of a node says it in packtrain.toml.

What is left unset is what fits: as many layers on the GPU as it has memory for, flash attention where the backend has
it. No llama.cpp in here: the agent and the catalog know these options too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from packtrain.broker.fields import Numerics

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

#: Whether to guess tokens of an answer and compute several in one step; see `engine/lookup.py`.
Speculation = Literal["off", "prompt-lookup"]

#: Elements of one block; llama.cpp wants the elements of one head's K, and of V, to be whole blocks.
KV_BLOCKS: dict[KvType, int] = {
    "f32": 1, "f16": 1, "bf16": 1, "q8_0": 32, "q5_1": 32, "q5_0": 32, "q4_1": 32, "q4_0": 32, "iq4_nl": 32,
}  # fmt: skip
MAX_LAYERS = 1024
MAX_DEVICES = 16  # LLAMA_MAX_DEVICES
#: Rows of one step, and of one of llama.cpp's own sub-steps.
N_BATCH = 512
#: Rows of one step that may have logits, at least. Without a limit llama.cpp reserves room for logits of all 512 rows:
#: 98 MiB for the 49,152 tokens of SmolLM2 against 18 with it.
MIN_OUTPUTS = 16
#: ... and for each slot: the token that follows, and three guessed ones to check.
OUTPUTS_PER_SLOT = 4
#: Rows of one step of a text to embed that may be cut. Each row takes a row of logits, which llama.cpp computes
#: unasked: 4 bytes times the vocabulary, twice, so 256 rows of a vocabulary of 150,000 take 300 MB.
EMBED_ROWS = 256


def rows_per_step(n_slots: int) -> int:
    """Most rows of one step."""
    return max(N_BATCH, n_slots)


def max_outputs(n_slots: int) -> int:
    """Most rows of one step that may have logits. One more and llama.cpp ends the process (GGML_ASSERT)."""
    return min(rows_per_step(n_slots), max(MIN_OUTPUTS, OUTPUTS_PER_SLOT * n_slots))


def rows_to_embed(max_tokens: int, *, is_whole: bool) -> int:
    """Most rows of one step that embeds.

    Args:
        max_tokens: Of one text.
        is_whole: No text may be cut: each of its tokens looks at all others.
    """
    return max(EMBED_ROWS, max_tokens) if is_whole else EMBED_ROWS


def _number_or_all(value: object) -> object:
    if not isinstance(value, int) or not 0 <= value <= MAX_LAYERS:
        raise ValueError("give a number of layers, or true for all")
    return value


Layers = Annotated[int | bool, BeforeValidator(_number_or_all)]


class LoadOptions(BaseModel):
    """For one model. Two instances with equal options, context and slots take the same memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    numerics: Numerics = Field("fast", description="`deterministic`: for all jobs, not only for those that ask for it")
    kv_type: KvType = Field("f16", description="type of the K and V cache")
    gpu_layers: Annotated[int, Field(strict=True, ge=0, le=MAX_LAYERS)] | None = Field(
        None, description="layers on the GPU; null: as many as fit where there is a GPU"
    )
    tensor_split: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        (), max_length=MAX_DEVICES, description="shares of the GPUs; empty: by their free memory"
    )
    flash_attention: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="null: where the backend has it, as the CPU does"
    )
    moe_on_cpu: Layers = Field(
        False, description="keep the experts of this many first layers on the CPU; true: of all layers"
    )
    speculation: Speculation = Field(
        "off", description="`prompt-lookup`: guess tokens that stood in the prompt or the answer before"
    )
    parking: Annotated[bool, Field(strict=True)] = Field(
        True, description="bulk jobs leave their slots to interactive ones for a while where all are taken"
    )

    @field_validator("tensor_split")
    @classmethod
    def _has_a_share(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value and not any(value):
            raise ValueError("at least one GPU must have a share above 0")
        return value

    @model_validator(mode="after")
    def _llama_cpp_takes_it(self) -> Self:
        if self.is_kv_quantised and self.flash_attention is False:
            raise ValueError(f"kv_type {self.kv_type} needs flash attention; leave flash_attention out, or take f16")
        return self

    @property
    def is_kv_quantised(self) -> bool:
        """True when the cache is kept in blocks."""
        return KV_BLOCKS[self.kv_type] > 1

    @property
    def kv_type_used(self) -> KvType:
        """With BF16, not F16 or F32, attention computes each row alone and adds up in float32."""
        return "bf16" if self.numerics == "deterministic" and not self.is_kv_quantised else self.kv_type

    def fault_for(self, key_length: int, value_length: int) -> str:
        """Why llama.cpp would refuse these options for heads of these lengths (elements); empty when it would not."""
        block = KV_BLOCKS[self.kv_type]
        odd = next((length for length in (key_length, value_length) if length % block), 0)
        if not odd:
            return ""
        return f"kv_type {self.kv_type} keeps {block} elements together, but its heads have {odd}; use f16 or bf16"

    def changed(self) -> dict[str, Any]:
        """What differs from the defaults, for people."""
        return self.model_dump(exclude_defaults=True, mode="json")
