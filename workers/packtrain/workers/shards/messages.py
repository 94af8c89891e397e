"""What a shard is told, as one argument."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from packtrain.broker.fields import Numerics


class ShardConfig(BaseModel):
    """Nothing in it is secret: arguments can be read by everybody on the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int = Field(ge=1, le=65535)
    cache: str = ""  # folder of tensors, which exists; empty: none are kept
    n_threads: int = Field(1, ge=1)
    numerics: Numerics = "fast"
    memory_bytes: int = Field(0, ge=0)  # that a head may take; 0: any
