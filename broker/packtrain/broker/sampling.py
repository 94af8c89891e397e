"""How the next token is chosen: the part of a request that a sampler reads."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from packtrain.broker.fields import Input, Text
from packtrain.broker.structured import FreeText, ResponseFormat


class SamplingParams(Input):
    """How the next token is chosen. The names and meanings are llama.cpp's and OpenAI's."""

    prompt_logprobs: int | None = Field(
        None, ge=0, le=20, description="the same as `logprobs` for each token of the prompt, given those before it"
    )
    max_tokens: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="tokens to produce; null: what the slot holds; 0: none, only with prompt_logprobs",
    )
    temperature: float = Field(0.8, ge=0, le=5, description="0 takes the most likely token")
    top_k: int = Field(40, ge=0, le=100_000, description="keep the k most likely tokens; 0: all")
    top_p: float = Field(0.95, ge=0, le=1, description="keep the smallest set with this probability; 0: one token")
    min_p: float = Field(0.05, ge=0, le=1, description="drop tokens below this share of the likeliest")
    typical_p: float = Field(1.0, gt=0, le=1, description="locally typical sampling; 1: off")
    repeat_penalty: float = Field(1.0, gt=0, le=10, description="1: off")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    penalty_last_n: int = Field(64, ge=0, le=8192, description="tokens that the penalties look back on")
    logit_bias: dict[int, float] = Field(default_factory=dict, description="token id to bias, -100 to 100")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="null: derived from the job id")
    stop: tuple[Annotated[Text, StringConstraints(min_length=1, max_length=256)], ...] = Field((), max_length=8)
    logprobs: int | None = Field(
        None, ge=0, le=20, description="give the logprob of each token, and of this many likeliest beside it"
    )
    ignore_eos: bool = Field(False, description="go on past the end-of-text token")
    response_format: ResponseFormat = Field(FreeText(), description="the form that the text must have")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_some(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("max_tokens")
    @classmethod
    def _something_is_asked_for(cls, value: int | None, known: ValidationInfo) -> int | None:
        if value == 0 and known.data.get("prompt_logprobs") is None:
            raise ValueError("asks for nothing; give at least 1, or prompt_logprobs to have the prompt scored")
        return value

    @model_validator(mode="after")
    def _form_has_an_end(self) -> Self:
        if self.ignore_eos and not isinstance(self.response_format, FreeText):
            raise ValueError("ignore_eos goes on past the end, a response_format ends with its text; use only one")
        return self

    @field_validator("logit_bias")
    @classmethod
    def _bias_in_range(cls, bias: dict[int, float]) -> dict[int, float]:
        if len(bias) > 1024:
            raise ValueError(f"has {len(bias)} entries, at most 1024 are allowed")
        for token, value in bias.items():
            if not (0 <= token < 2**31 and -100 <= value <= 100):
                raise ValueError(f"entry {token}: {value} is outside token ids >= 0 and -100 to 100")
        return bias
