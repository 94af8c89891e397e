"""The bodies of Ollama's requests. Fields that are not named here are taken and change nothing."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from packtrain.client.openai.bodies import Body, Off

On = Annotated[bool, BeforeValidator(lambda value: True if value is None else value)]


class OllamaBody(Body):
    """What all requests have."""

    options: dict[str, Any] | None = Field(None, description="sampling: num_predict, temperature, seed, stop, ...")
    keep_alive: float | str | None = Field(None, description="0 without a prompt: unload the model")

    @field_validator("model")
    @classmethod
    def _untagged(cls, model: str) -> str:
        """Ollama's name for a model without a tag is one with `:latest`."""
        return model.removesuffix(":latest")

    @property
    def unloads(self) -> bool:
        """True when the model is not to be kept."""
        return str(self.keep_alive).strip().rstrip("smh") in ("0", "0.0")


class GenerationBody(OllamaBody):
    """What requests for text have in common."""

    stream: On = True
    format: str | dict[str, Any] | None = Field(None, description="`json`, or a schema")
    think: bool | str | None = Field(None, description="true, false, or how much: low, medium, high")
    logprobs: Off = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class ChatBody(GenerationBody):
    """POST /api/chat."""

    messages: list[dict[str, Any]] = Field(default_factory=list, description="none: load the model")
    tools: list[dict[str, Any]] | None = None


class GenerateBody(GenerationBody):
    """POST /api/generate."""

    prompt: str = Field("", description="none: load the model")
    suffix: str | None = None
    system: str | None = None
    raw: Off = Field(False, description="no template")
    images: list[Any] | None = None


class EmbedBody(OllamaBody):
    """POST /api/embed."""

    input: str | list[str]
    dimensions: int | None = None


class EmbeddingsBody(OllamaBody):
    """POST /api/embeddings, the old one."""

    prompt: str
