"""Amounts of tokens: always the same, or drawn for each job, as a fleet file says."""

from __future__ import annotations

import random
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, model_validator

from packtrain.broker.fields import Input

MAX_TOKENS = 2**24

Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]


class Fixed(Input):
    """Always the same number of tokens. A number alone is this."""

    fixed: Tokens

    def draw(self, rng: random.Random) -> int:  # noqa: ARG002
        """Tokens of the next job."""
        return self.fixed


class Uniform(Input):
    """Any number of tokens between two, both included, as likely as any other."""

    uniform: tuple[Tokens, Tokens]

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.uniform[0] > self.uniform[1]:
            raise ValueError("the first number is above the second one; exchange them")
        return self

    def draw(self, rng: random.Random) -> int:
        """Tokens of the next job."""
        return rng.randint(*self.uniform)


class LogNormal(Input):
    """Many short ones, a few very long ones: half are below the median, two thirds within a factor of e^sigma of it."""

    median: Annotated[float, Field(gt=0, le=MAX_TOKENS)]
    sigma: Annotated[float, Field(ge=0, le=5)] = 1.0
    most: Tokens = MAX_TOKENS

    def draw(self, rng: random.Random) -> int:
        """Tokens of the next job."""
        return min(self.most, round(self.median * rng.lognormvariate(0, self.sigma)))


def _number_alone(value: object) -> object:
    return {"fixed": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _known_amount(value: object) -> object:
    if not isinstance(value, BaseModel) and not _kind_of(value):
        raise ValueError("give a number, {uniform = [from, to]} or {median = 200, sigma = 0.8}")
    return value


def _kind_of(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, BaseModel) else ()
    return next((kind for key, kind in _KINDS.items() if key in keys), None)


#: By the key that tells them apart. In brackets, for they stand in the place of an error and are no keys of the file.
_KINDS = {"fixed": "[fixed]", "uniform": "[uniform]", "median": "[median]"}
Amount = Annotated[
    Annotated[Fixed, Tag("[fixed]")] | Annotated[Uniform, Tag("[uniform]")] | Annotated[LogNormal, Tag("[median]")],
    Discriminator(_kind_of),
    BeforeValidator(_known_amount),
    BeforeValidator(_number_alone),
]
