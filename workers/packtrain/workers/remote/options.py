"""What packtrain.toml says of a model that another server answers for: `[models.NAME.remote]`.

The key of that server is never here, only the name of the environment variable that holds it: so it stands in no
argument list, record, log or report.
"""

from __future__ import annotations

import re
from typing import Annotated, Self, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from packtrain.broker.fields import Text
from packtrain.broker.media import Modality

DEFAULT_CONCURRENCY = 8
MAX_CONCURRENCY = 256
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")

Price = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class RemoteOptions(BaseModel):
    """One model of one server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="of its API, what stands before /chat/completions: https://api.example.com/v1")
    model: Annotated[Text, StringConstraints(max_length=256)] = Field(
        "", description="its name there; empty: as it is called here"
    )
    modalities: tuple[Modality, ...] = Field(
        ("text",), description='what the server is sent: "text", with "vision" images, too, with "audio" sounds'
    )
    key_env: str = Field("", description="environment variable that holds the key; empty: no key is sent")
    concurrency: Annotated[int, Field(strict=True, ge=1, le=MAX_CONCURRENCY)] = Field(
        DEFAULT_CONCURRENCY, description="requests at once, of one instance"
    )
    requests_per_minute: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = Field(
        None, description="requests in any 60 seconds, of one instance; null: any number"
    )
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        120, description="the server may be silent for so long, seconds"
    )
    retry_s: Annotated[float, Field(ge=0, le=86_400)] = Field(
        60, description="a request is tried again for so long, as long as nothing of its answer has come, seconds"
    )
    max_answer_mib: Annotated[int, Field(strict=True, ge=1, le=4096)] = Field(
        64, description="of all that the server sends for one request, MiB"
    )
    price_in: Price | None = Field(None, description="of a million tokens of prompts, in any currency")
    price_out: Price | None = Field(None, description="of a million tokens of answers")

    @field_validator("url")
    @classmethod
    def _is_a_base(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.username is not None or parts.password is not None:
            raise ValueError("leave user and password out of it; name a variable in key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("give the beginning of its API's addresses, such as https://api.example.com/v1")
        if set(value) & set(" \t\r\n") or parts.path.rstrip("/").endswith(("/completions", "/embeddings")):
            raise ValueError("give only what stands before /chat/completions, such as https://api.example.com/v1")
        _ = parts.port  # a ValueError of its own when it is no number
        return value.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _is_a_variable(cls, value: str) -> str:
        if value and not _VARIABLE.fullmatch(value):
            raise ValueError("give the name of an environment variable in capitals, such as GROQ_API_KEY, not the key")
        return value

    @field_validator("modalities")
    @classmethod
    def _takes_text(cls, value: tuple[Modality, ...]) -> tuple[Modality, ...]:
        return tuple(kind for kind in get_args(Modality) if kind == "text" or kind in value)

    @model_validator(mode="after")
    def _prices_go_together(self) -> Self:
        if (self.price_in is None) is not (self.price_out is None):
            raise ValueError("give both price_in and price_out, or neither")
        return self

    @property
    def host(self) -> str:
        """Host and port, for people."""
        return urlsplit(self.url).netloc

    @property
    def why_no_key(self) -> str:
        """Said of a variable that is not set."""
        return (
            f"the environment variable {self.key_env} with the key for {self.host} is not set; set it, restart the node"
        )

    @property
    def shown(self) -> str:
        """What receipts and lists call it."""
        return f"{self.host} {self.model}"
