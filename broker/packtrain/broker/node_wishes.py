"""What operators want of a node: its budgets, its labels, whether it takes work. Kept in the broker until it changes.

State, not commands: the agent reads it at each beat and follows it, so a change reaches a node that is away or restarts
now as soon as it is back, and nothing has to be sent twice. What is set here goes before what the agent was started
with; what is not set here is as it was started.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from packtrain.broker.fields import Input, Report

#: Below this no instance of any model could start, let alone hold one: most likely a unit was forgotten.
LEAST_MEMORY = 64 * 1024 * 1024
_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}=[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class NodeWish(Report):
    """What was asked of one node so far."""

    memory: int | None = Field(None, description="bytes that instances may use together; null: as it was started")
    cores: int | None = Field(None, description="cores that instances may use together; null: as it was started")
    labels: dict[str, str | None] = Field(
        default_factory=dict, description="over those it was started with; null: it has not this one"
    )
    draining: bool = Field(False, description="it takes no new instance, and those it has leave")
    resumed_ms: int = Field(0, description="a quarantine that began before this moment is over")


class NodeChange(Input):
    """One request to change it. What is left out stays as it is."""

    memory: Annotated[int, Field(ge=0)] | None = Field(None, description="bytes; 0: as it was started")
    cores: Annotated[int, Field(ge=0, le=4096)] | None = Field(None, description="0: as it was started")
    labels: dict[str, str | None] = Field(default_factory=dict, max_length=64, description="null takes one away")
    draining: bool | None = None
    resume: bool = Field(False, description="end its quarantine")

    @field_validator("memory")
    @classmethod
    def _enough_for_something(cls, value: int | None) -> int | None:
        if value and value < LEAST_MEMORY:
            raise ValueError(f"is less than {LEAST_MEMORY // 1024**2} MiB, which no model fits in; write it like 12GB")
        return value

    @field_validator("labels")
    @classmethod
    def _labels_are_plain(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        for key, text in value.items():
            check_label(key, "x" if text is None else text)
        return value


def changed(wish: NodeWish, change: NodeChange, *, now_ms: int) -> NodeWish:
    """The wish after this change.

    >>> changed(NodeWish(memory=10**9), NodeChange(memory=0, draining=True), now_ms=1).draining
    True
    """
    return NodeWish(
        memory=wish.memory if change.memory is None else change.memory or None,
        cores=wish.cores if change.cores is None else change.cores or None,
        labels={**wish.labels, **change.labels},
        draining=wish.draining if change.draining is None else change.draining,
        resumed_ms=now_ms if change.resume else wish.resumed_ms,
    )


def check_label(key: str, value: str) -> None:
    """Refuse a label that could not stand in a selector.

    Raises:
        ValueError
    """
    if not _LABEL.fullmatch(f"{key}={value}"):
        raise ValueError(
            f"label {key + '=' + value!r} is not plain; write it like room=attic: a key of lower-case letters, digits, "
            "'-', '_' and '.', a value that may have capitals, too, each at most 63 characters"
        )


def parse_label(text: str) -> tuple[str, str]:
    """Key and value of `key=value`.

    >>> parse_label("room=attic")
    ('room', 'attic')

    Raises:
        ValueError
    """
    key, _, value = text.strip().partition("=")
    check_label(key, value)
    return key, value
