"""The bodies of Anthropic's requests. What only its own service understands is taken and changes nothing."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from packtrain.client.openai.bodies import Body, Off


class CountBody(Body):
    """POST /v1/messages/count_tokens."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = Field(None, description="enabled, adaptive or disabled; none: disabled")
    output_config: dict[str, Any] | None = Field(None, description="`effort`, and the `format` of the text")


class MessagesBody(CountBody):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stream: Off = False
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = Field(None, description="`user_id`: whose share of the fleet the request takes")
    # Packtrain's own, as in OpenAI's requests.
    seed: int | None = None
