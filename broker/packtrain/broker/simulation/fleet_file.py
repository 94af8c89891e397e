"""A fleet on paper: nodes, models and who asks for what, as a TOML file. `docs/simulation.md` explains each key.

A wrong key or value ends with an error that names it, its value and the remedy.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from packtrain.broker import units
from packtrain.broker.claims import reserved_slots
from packtrain.broker.errors import InvalidParameter
from packtrain.broker.fields import Input, SafeId
from packtrain.broker.job_spec import Lane
from packtrain.broker.placement import MAX_WAIT_MS, MIN_RESIDENCY_MS
from packtrain.broker.simulation.amounts import MAX_TOKENS, Amount, Fixed, Tokens

MAX_NODES, MAX_MODELS, MAX_SECONDS = 10_000, 10_000, 366 * 24 * 3600
#: Jobs of one burst, or of one stream.
MAX_JOBS = 100_000_000
#: Of the memory of a node, where it does not say.
BUDGET_SHARE = 0.8


def _size(value: object) -> object:
    return units.parse_size(value) if isinstance(value, str) else value


def _duration(value: object) -> object:
    return units.parse_duration(value) if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(_size), Field(gt=0, le=2**60)]
Seconds = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=MAX_SECONDS)]
Speed = Annotated[float, Field(gt=0, le=1e9)]
User = Annotated[str, Field(min_length=1, max_length=200)]


def _shares(value: object) -> object:
    if isinstance(value, str):
        return {value: 1}
    return dict.fromkeys(value, 1) if isinstance(value, list) else value


def _has_share(value: dict[str, float]) -> dict[str, float]:
    if not any(value.values()):
        raise ValueError("give at least one of them a share above 0")
    return value


Share = Annotated[float, Field(ge=0, le=1e9)]
#: Names with what each has of the whole; a list gives all the same, a text all to one.
Shares = Annotated[dict[User, Share], AfterValidator(_has_share), BeforeValidator(_shares)]


class Settings(Input):
    """How the coordinator is set, and what a load takes beside the model's bytes."""

    max_wait: Seconds = Field(MAX_WAIT_MS / 1000, description="PACKTRAIN_MAX_WAIT_S")
    min_residency: Seconds = Field(MIN_RESIDENCY_MS / 1000, description="PACKTRAIN_MIN_RESIDENCY_S")
    drain: Seconds = Field(30, description="PACKTRAIN_DRAIN_S: what has not ended by then goes on elsewhere")
    start: Seconds = Field(1.0, description="of a process, before it reads weights")
    stop: Seconds = Field(0.5, description="from the last job of an instance to its memory being free")
    tick: Annotated[float, Field(ge=0.01, le=60)] = Field(1.0, description="seconds from plan to plan")


class NodeSection(Input):
    """One node, or `count` equal ones, which are called `name-0`, `name-1` and so on."""

    name: SafeId
    count: Annotated[int, Field(ge=1, le=MAX_NODES)] = 1
    memory: Size
    budget: Size | None = Field(None, description="what instances may use together; left out: 80 % of the memory")
    cores: Annotated[int, Field(ge=1, le=4096)] = 1
    speed: Speed = Field(1.0, description="of what models say of their rates")
    disk: Size = Field(500_000_000, description="bytes a second that a load reads")
    network: Size = Field(100_000_000, description="bytes a second that a fetch takes")
    disk_free: Annotated[int, BeforeValidator(_size), Field(ge=0, le=2**60)] = 10**12
    labels: dict[str, str] = Field(default_factory=dict)
    models: tuple[SafeId, ...] | None = Field(None, description="files it has; left out: all")

    @property
    def memory_budget(self) -> int:
        """Bytes that instances may use together."""
        return min(self.memory, self.budget or int(self.memory * BUDGET_SHARE))

    def files(self, every: Iterable[str]) -> tuple[str, ...]:
        """Models that it has the file of, out of these."""
        return tuple(every) if self.models is None else self.models

    @property
    def names(self) -> list[str]:
        """Of all its nodes."""
        return [self.name] if self.count == 1 else [f"{self.name}-{n}" for n in range(self.count)]


class DecodeRate(Input):
    """Tokens a second of one instance that has a node of speed 1 to itself."""

    alone: Speed
    full: Speed | None = Field(None, description="of all slots together; left out: as if each stepped alone in turn")


class Replicas(Input):
    """How many instances the fleet loads."""

    min: Annotated[int, Field(ge=0, le=1000)] = 0
    max: Annotated[int, Field(ge=1, le=1000)] | None = None


class ModelSection(Input):
    """One model."""

    memory: Size = Field(description="of an instance, with its cache")
    file: Size | None = Field(None, description="bytes to read and to fetch; left out: as `memory`")
    slots: Annotated[int, Field(ge=1, le=256)] = 8
    context: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = Field(4096, description="tokens of a slot")
    reserved_slots: Annotated[int, Field(ge=0, lt=256)] | None = None
    load: Seconds | None = Field(None, description="left out: `settings.start` and the file by the node's disk")
    decode: DecodeRate | None = Field(None, description="needed to simulate; `plan` does without")
    prefill: Speed | None = Field(None, description="tokens a second; needed to simulate")
    keep_alive: Annotated[float, BeforeValidator(_duration), Field(ge=-MAX_SECONDS, le=MAX_SECONDS)] = 300.0
    pinned: bool = False
    replicas: Replicas = Replicas()
    nodes: dict[str, str] = Field(default_factory=dict, description="labels that a node must have")

    @property
    def file_bytes(self) -> int:
        """To read and to fetch."""
        return self.file or self.memory

    @property
    def bulk_slots(self) -> int:
        """Bulk jobs that an instance runs at once."""
        # Parking is not simulated.
        return self.slots - reserved_slots(self.slots, self.reserved_slots, parks=False)


class JobsSection(Input):
    """A stream of jobs, or a burst of them when it has no rate."""

    models: Shares
    users: Shares = Field(default_factory=lambda: {"default": 1.0})
    lane: Lane = "interactive"
    start: Seconds = 0.0
    rate: Speed | None = Field(None, description="jobs a second on average, at random; left out: all at `start`")
    lasts: Annotated[float, BeforeValidator(_duration), Field(gt=0, le=MAX_SECONDS)] | None = None
    count: Annotated[int, Field(ge=1, le=MAX_JOBS)] | None = None
    prompt: Amount = Fixed(fixed=100)
    output: Amount = Fixed(fixed=100)
    max_tokens: Tokens | None = Field(None, description="as the job says; left out: it says nothing")

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.count is None and (self.rate is None or self.lasts is None):
            raise ValueError("it has no end; give `count`, or `rate` and `lasts`")
        if self.lasts is not None and self.rate is None:
            raise ValueError("`lasts` is of a stream with a `rate`; leave it out, or give one")
        return self


class TraceLine(Input):
    """One job of a trace, a line of a JSONL file."""

    at: Annotated[float, Field(ge=0, le=MAX_SECONDS)]
    model: SafeId
    user: User = "default"
    lane: Lane = "interactive"
    prompt: Tokens
    output: Tokens
    max_tokens: Tokens | None = None


class FleetFile(Input):
    """A whole file."""

    settings: Settings = Settings()
    nodes: tuple[NodeSection, ...] = Field(min_length=1)
    models: dict[SafeId, ModelSection] = Field(min_length=1, max_length=MAX_MODELS)
    jobs: tuple[JobsSection, ...] = ()
    trace: str | None = Field(None, description="a JSONL file with further jobs, as seen from this one")

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [name for section in self.nodes for name in section.names]
        if len(names) > MAX_NODES:
            raise ValueError(f"it has {len(names)} nodes, at most {MAX_NODES} can be simulated; leave some out")
        if twice := next((name for name in names if names.count(name) > 1), None) if _has_twice(names) else None:
            raise ValueError(f"two nodes are called {twice!r}; give each its own name")
        for section in self.nodes:
            self._check_known(section.models or (), f"node {section.name!r} has")
        for number, jobs in enumerate(self.jobs):
            self._check_known(jobs.models, f"jobs.{number} ask for")
        return self

    def _check_known(self, names: object, who: str) -> None:
        assert isinstance(names, tuple | dict)
        if unknown := next((name for name in names if name not in self.models), None):
            known = ", ".join(sorted(self.models)[:10])
            raise ValueError(f"{who} the model {unknown!r}, which is none of [models]; use one of {known}")


def _has_twice(names: list[str]) -> bool:
    return len(set(names)) < len(names)


def parse_fleet(text: str, name: str) -> FleetFile:
    """A fleet from the text of its file.

    Args:
        name: Of the file, for messages.

    Raises:
        InvalidParameter: It is not TOML, or has a wrong key or value.
    """
    try:
        return FleetFile.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise _explained(name, error) from None
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"{name} is not TOML: {error}; correct this place", field=name) from error


def parse_trace_line(line: str, where: str, known: dict[SafeId, ModelSection]) -> TraceLine:
    """One job of a trace.

    Args:
        where: File and line, for messages.

    Raises:
        InvalidParameter
    """
    try:
        job = TraceLine.model_validate_json(line)
    except ValidationError as error:
        raise _explained(where, error) from None
    if job.model not in known:
        raise InvalidParameter(
            f"{where}: model = {job.model!r}: is none of [models]; use one of {', '.join(sorted(known)[:10])}",
            field="model",
        )
    return job


def _explained(name: str, error: ValidationError) -> InvalidParameter:
    """pydantic's first complaint, with file, key, value and remedy."""
    first = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(part for part in map(str, first["loc"]) if not part.startswith("["))
    message, remedy = str(first["msg"]).removeprefix("Value error, "), "correct this value"
    kind: Literal["key", "value", "whole"] = "value"
    match first["type"]:
        case "extra_forbidden":
            kind, message, remedy = "key", "unknown key", "remove it, or correct its name"
        case "missing":
            kind, message, remedy = "key", "is missing", "add it"
        case "value_error" if ";" in message:
            message, _, remedy = message.partition("; ")
            kind = "whole" if not key else "value"
    shown = f"{key} = {first['input']!r:.60}: " if kind == "value" and key else f"{key}: " * bool(key)
    return InvalidParameter(f"{name}: {shown}{message}; {remedy}", field=key or name)
