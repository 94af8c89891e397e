"""A split: which layers of a model lie on which shard, as a head is told it.

The head has the first layers, the input and the output; the shards have the others in order, each a run of neighbours.
The output stays with the head because logits are large: a row has 4 bytes for each token of the vocabulary, 192 KiB for
49,152 of them, where the hidden state that goes in has 2 KiB. llama.cpp by itself puts it on the last device.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from packtrain.broker.errors import ModelLoadFailed

#: llama.cpp's RPC has no authentication, so nobody but this machine is ever asked: a tunnel ends here.
HOST = "127.0.0.1"
MAX_SHARDS = 16  # GGML_RPC_MAX_SERVERS


class ShardPlace(BaseModel):
    """Where a shard is reached, and how many layers it has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int = Field(ge=1, le=65535, description=f"at {HOST}: of the shard itself, or of a tunnel to it")
    layers: int = Field(ge=1)
    name: str = Field("", description="its node, for messages")

    @property
    def endpoint(self) -> str:
        """As llama.cpp names it."""
        return f"{HOST}:{self.port}"

    def __str__(self) -> str:
        return f"the shard on {self.name}" if self.name else f"the shard at {self.endpoint}"


class Split(BaseModel):
    """All shards of a model, in the order of their layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: tuple[ShardPlace, ...] = Field(min_length=1, max_length=MAX_SHARDS)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len({shard.port for shard in self.shards}) < len(self.shards):
            raise ValueError("two shards have one port")
        return self

    @property
    def num_layers(self) -> int:
        """On shards, together."""
        return sum(shard.layers for shard in self.shards)

    def check(self, model: str, n_layer: int) -> None:
        """
        Raises:
            ModelLoadFailed: The model has fewer layers than the shards shall have.
        """
        if self.num_layers > n_layer:
            raise ModelLoadFailed(
                f"{model!r} has {n_layer} layers, and {self.num_layers} were given to shards; plan the split again"
            )
