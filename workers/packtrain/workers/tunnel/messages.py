"""What one end of a tunnel is told, as one argument, and what it says."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from packtrain.workers.tunnel.handshake import Role


class TunnelConfig(BaseModel):
    """Nothing in it is secret: the key is named by its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    host: str = Field(description="where to listen; an entry does at loopback")
    port: int = Field(0, ge=0, le=65535, description="0: a free one")
    target_host: str
    target_port: int = Field(ge=1, le=65535)
    certificate_file: str
    key_file: str
    peer: str = Field(description="certificate of the other end, PEM")


class TunnelReady(BaseModel):
    """It listens."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    port: int
