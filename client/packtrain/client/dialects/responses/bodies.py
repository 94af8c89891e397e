"""The body of a request for a response. What only OpenAI's own service understands is taken and changes nothing."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from packtrain.client.openai.bodies import Body, Off


class ResponsesBody(Body):
    """POST /v1/responses."""

    input: str | list[dict[str, Any]] = Field(description="a text, or all items of the conversation so far")
    instructions: str | None = None
    stream: Off = False
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[str] | None = Field(None, description="`message.output_text.logprobs` adds logprobs")
    text: dict[str, Any] | None = Field(None, description="`format`: the form that the text must have")
    reasoning: dict[str, Any] | None = Field(None, description="`effort`")
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, Any] | None = Field(None, description="comes back in the answer")
    # What needs a memory of earlier responses, which a gateway has not.
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    background: Off = False
    # Packtrain's own, as in OpenAI's other requests.
    seed: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
