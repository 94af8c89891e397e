"""`packtrain.toml`: what the operator of a node says about its models. Everything in it is optional.

    split = true                # this node may hold parts of models with others, see docs/split.md

    [defaults]
    context = 4096              # tokens of one slot
    slots = 8                   # sequences at once; left out: what fits in a quarter of the memory
    keep_alive = "5m"           # unload after this long without a job
    kv_type = "q8_0"            # any load option, see `load_options.LoadOptions`

    [models.smollm2]            # the model with this id
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"    # the file in a model folder that gets this id
    aliases = ["smol", "tiny"]  # further names that jobs may use
    context = 2048
    slots = 16
    reserved_slots = 2          # left to interactive jobs by bulk ones; left out: 0, and without parking 1 of 4 or more
    parking = false             # bulk jobs do not leave their slots to interactive ones for a while
    keep_alive = "10m"          # seconds, or "30s", "10m", "2h"; negative: never unload
    pinned = true               # never evicted
    replicas = {min = 1, max = 3}   # keep 1 loaded, load up to 3 when jobs pile up; left out: 0, and one on each node
    nodes = {gpu = "yes"}       # only nodes with these labels; what one node says of a model holds for the fleet
    split = ["attic", "vm"]     # these nodes always hold it together, see docs/split.md; left out: where it must be
    kv_type = "f16"             # of the cache; f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl
    gpu_layers = 20             # left out: all where there is a GPU
    tensor_split = [3, 1]       # shares of the GPUs
    flash_attention = true      # left out: where the backend has it
    moe_on_cpu = 10             # layers whose experts stay on the CPU; true: all
    mmproj = "vision/mmproj.gguf"   # its projector, as seen from a model folder; left out: found by name; false: none
    speculation = "prompt-lookup"  # guess what stood in the prompt or the answer before; else "off"

    [models.smollm2.adapters]   # LoRA adapters of this model, which jobs may name
    pirate = "lora/pirate.gguf" # the file, its path as seen from a model folder
    polite = {path = "polite.gguf", scale = 0.5}    # of jobs that name it without a scale; 1 where left out

    [models.big.remote]         # a model that another server answers for, see docs/remote.md
    url = "https://api.example.com/v1"      # of its API, what stands before /chat/completions
    model = "example/big-70b"   # its name there; left out: as it is called here
    key_env = "EXAMPLE_API_KEY" # the environment variable that holds the key; left out: no key
    concurrency = 8             # requests at once
    requests_per_minute = 30    # left out: any number
    timeout_s = 120             # the server may be silent for so long
    retry_s = 60                # a request is tried again for so long
    price_in = 0.1              # of a million tokens; with price_out: results say what they cost
    price_out = 0.4

    [aliases.chat]              # a name with several targets
    targets = ["smollm2", "big"]    # models of this node or another, the preferred one first
    spill_after_s = 20          # jobs that would wait longer go to the next; left out: only where the one before fails

A mistake in this file stops the node at its start, because only the operator can say what was meant.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from packtrain.broker.errors import SetupError
from packtrain.broker.fields import SafeId
from packtrain.broker.job_spec import AdapterScale
from packtrain.broker.units import parse_duration
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.remote.options import RemoteOptions

FILE_NAME = "packtrain.toml"
DEFAULT_CONTEXT = 4096  # tokens
DEFAULT_KEEP_ALIVE_S = 300.0
MAX_CONTEXT = 2**24  # tokens; the longest trained so far is 10 million
MAX_SLOTS = 256  # LLAMA_MAX_SEQ
MAX_KEEP_ALIVE_S = 10 * 365 * 24 * 3600
MAX_REPLICAS = 1_000
MAX_LABELS = 16  # of one selector
MAX_LORAS = 64  # adapters of one model: all are loaded with it

MAX_SPLIT = 8  # nodes that hold one model together

MAX_TARGETS = 16  # of one alias
MAX_SPILL_S = 7 * 24 * 3600  # no job waits longer

_LOAD_OPTIONS = set(LoadOptions.model_fields)
#: What may be said of a remote model.
_OF_REMOTES = {"remote", "aliases", "context", "reserved_slots", "keep_alive", "pinned", "replicas", "nodes"}
_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}=[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # as nodes have them


def _seconds(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError('give seconds, or a text such as "30s", "10m" or "2h"; negative: never unload')
    if not isinstance(value, str):
        return value
    try:
        return parse_duration(value)
    except ValueError:
        raise ValueError('give seconds, or a text such as "30s", "10m" or "2h"; negative: never unload') from None


KeepAlive = Annotated[
    float, BeforeValidator(_seconds), Field(ge=-MAX_KEEP_ALIVE_S, le=MAX_KEEP_ALIVE_S, allow_inf_nan=False)
]
Context = Annotated[int, Field(strict=True, ge=1, le=MAX_CONTEXT)]
Slots = Annotated[int, Field(strict=True, ge=1, le=MAX_SLOTS)]
Reserved = Annotated[int, Field(strict=True, ge=0, lt=MAX_SLOTS)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Defaults(LoadOptions):
    """For every model that does not say otherwise."""

    context: Context = Field(DEFAULT_CONTEXT, description="tokens of one slot; less where a model was trained on less")
    slots: Slots | None = Field(None, description="sequences at once; null: what fits in a quarter of the budget")
    reserved_slots: Reserved | None = Field(
        None, description="slots that bulk jobs leave to interactive ones; null: 0, and without parking 1 of 4 or more"
    )
    keep_alive: KeepAlive = Field(DEFAULT_KEEP_ALIVE_S, description="seconds; negative: never unload")


def _path_alone(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


def _below_a_folder(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not value.lower().endswith(".gguf"):
        raise ValueError("give the path of a .gguf file below a model folder, such as lora/pirate.gguf")
    return value


class AdapterOptions(_Section):
    """For one LoRA adapter of a model."""

    path: str = Field(description="as seen from a model folder")
    scale: AdapterScale = Field(1.0, description="of jobs that name it without one")

    @field_validator("path")
    @classmethod
    def _is_below_a_folder(cls, value: str) -> str:
        return _below_a_folder(value)


def _number_alone(value: object) -> object:
    return {"min": value, "max": value} if isinstance(value, int) and not isinstance(value, bool) else value


class ReplicaOptions(_Section):
    """How many instances of one model the fleet loads. A number alone is both."""

    min: Annotated[int, Field(strict=True, ge=0, le=MAX_REPLICAS)] = Field(0, description="loaded though no job waits")
    max: Annotated[int, Field(strict=True, ge=1, le=MAX_REPLICAS)] | None = Field(
        None, description="loaded when jobs pile up; null: one on each node"
    )

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.max is not None and self.min > self.max:
            raise ValueError(
                f"min = {self.min} is more than max = {self.max}; give a range such as {{min = 1, max = 3}}"
            )
        return self


def _are_labels(value: dict[str, str]) -> dict[str, str]:
    for label in (f"{key}={text}" for key, text in value.items()):
        if not _LABEL.fullmatch(label):
            raise ValueError(f'{label!r} is not a label; write it like {{room = "attic"}}, plain words without spaces')
    return value


Selector = Annotated[dict[str, str], Field(max_length=MAX_LABELS), AfterValidator(_are_labels)]


class AliasOptions(_Section):
    """For one name with several targets."""

    targets: tuple[SafeId, ...] = Field(min_length=1, max_length=MAX_TARGETS, description="the preferred one first")
    spill_after_s: Annotated[float, Field(ge=0, le=MAX_SPILL_S, allow_inf_nan=False)] | None = Field(
        None, description="jobs that would wait longer go to the next target, seconds; null: only after a failure"
    )

    @field_validator("targets")
    @classmethod
    def _are_several(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a target stands there twice; name each once")
        return value


def _are_nodes(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(value) == 1:
        raise ValueError("one node holds a model by itself; name two or more, or leave it out")
    if len(set(value)) < len(value):
        raise ValueError("a node stands there twice; name each once")
    return value


SplitOver = Annotated[tuple[SafeId, ...], Field(max_length=MAX_SPLIT), AfterValidator(_are_nodes)]


class ModelOptions(LoadOptions):
    """For one model. What is left out comes from `Defaults`."""

    remote: RemoteOptions | None = Field(None, description="the server that answers; null: it is loaded here")

    mmproj: str | Literal[False] | None = Field(
        None, description="its projector, as seen from a model folder; null: found by its name; false: none"
    )
    file: str | None = Field(None, description="name of the file, of part 1 where it is split, that gets this id")
    aliases: tuple[SafeId, ...] = Field((), description="further names that jobs may use")
    context: Context | None = None
    slots: Slots | None = None
    reserved_slots: Reserved | None = None
    keep_alive: KeepAlive | None = None
    pinned: Annotated[bool, Field(strict=True)] = Field(False, description="never evicted")
    replicas: Annotated[ReplicaOptions, BeforeValidator(_number_alone)] = Field(
        ReplicaOptions(), description="how many are loaded; null: 0 while nobody asks, then up to one on each node"
    )
    nodes: Selector = Field(default_factory=dict, description="labels that a node must have")
    split: SplitOver = Field((), description="nodes that always hold it together; null: where it must be divided")
    adapters: dict[SafeId, Annotated[AdapterOptions, BeforeValidator(_path_alone)]] = Field(
        default_factory=dict, max_length=MAX_LORAS, description="LoRA adapters that jobs may name"
    )

    @field_validator("mmproj")
    @classmethod
    def _is_a_projector(cls, value: str | Literal[False] | None) -> str | Literal[False] | None:
        return _below_a_folder(value) if isinstance(value, str) else value

    @field_validator("file")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and (Path(value).name != value or not value.lower().endswith(".gguf")):
            raise ValueError("give the name of a .gguf file, without folders")
        return value


class CatalogConfig(_Section):
    """The whole file."""

    split: Annotated[bool, Field(strict=True)] = Field(
        False, description="this node may hold parts of models with others, see docs/split.md"
    )
    defaults: Defaults = Defaults()
    models: dict[SafeId, ModelOptions] = Field(default_factory=dict)
    aliases: dict[SafeId, AliasOptions] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        owners: dict[str, str] = {}
        files: dict[str, str] = {}
        for model, options in self.models.items():
            for alias in options.aliases:
                if alias in self.models:
                    raise ValueError(f"models.{model}.aliases: {alias!r} is itself the id of a model")
                if owners.setdefault(alias, model) != model:
                    raise ValueError(f"models.{model}.aliases: {alias!r} is already an alias of {owners[alias]!r}")
            if options.file is not None and files.setdefault(options.file, model) != model:
                raise ValueError(f"models.{model}.file: {options.file!r} already has the id {files[options.file]!r}")
        for name, several in self.aliases.items():
            if name in self.models or name in owners:
                raise ValueError(f"aliases.{name}: {name!r} is already the name of a model; choose another")
            if chained := next((t for t in several.targets if t in self.aliases or t in owners), None):
                raise ValueError(f"aliases.{name}.targets: {chained!r} is itself an alias; name the model")
        return self

    @model_validator(mode="after")
    def _remotes_load_nothing(self) -> Self:
        for model, options in self.models.items():
            said = options.model_fields_set - _OF_REMOTES
            if options.remote and said:
                name = min(said)
                remedy = "use concurrency in its `remote`" if name == "slots" else "remove it"
                raise ValueError(f"models.{model}.{name}: the model is remote, so nothing of it is loaded; {remedy}")
        return self

    @model_validator(mode="after")
    def _load_options_go_together(self) -> Self:
        for model in self.models:
            try:
                self.load_options(model)
            except ValidationError as error:
                raise ValueError(f"models.{model}, with [defaults]: {_message(error)}") from None
        return self

    def load_options(self, model: str) -> LoadOptions:
        """How the model with this id is loaded: what its section says, else what `[defaults]` says."""
        if (remote := self.models.get(model)) and remote.remote:
            return LoadOptions()
        said = self.defaults.model_dump(include=_LOAD_OPTIONS, exclude_unset=True)
        if options := self.models.get(model):
            said |= options.model_dump(include=_LOAD_OPTIONS, exclude_unset=True)
        return LoadOptions.model_validate(said)


def load_catalog_config(home: Path) -> CatalogConfig:
    """What `packtrain.toml` in the home folder says; the defaults where there is no such file.

    Raises:
        SetupError: The file cannot be read, is not TOML, or has a wrong key or value; the message names it.
    """
    path = home / FILE_NAME
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return CatalogConfig.model_validate(content)
    except FileNotFoundError:
        return CatalogConfig()
    except OSError as error:
        raise SetupError(
            f"{path} cannot be read ({error.strerror}); correct its permissions", file=str(path)
        ) from error
    except ValidationError as error:
        raise _explained(path, error) from None
    except ValueError as error:  # of tomllib, of UTF-8, and of numbers with thousands of digits
        raise SetupError(f"{path} is not TOML: {error}; correct this place", file=str(path)) from error


def _explained(path: Path, error: ValidationError) -> SetupError:
    """pydantic's first complaint, with file, key and remedy."""
    first = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    message, remedy = _message(error), "correct this value"
    if first["type"] == "extra_forbidden":
        known = ", ".join(_section_at(first["loc"]).model_fields)
        message, remedy = "unknown key", f"remove it, or use one of {known}"
    elif first["type"] == "string_pattern_mismatch":
        message = "not a usable name"
        remedy = "use lower-case letters, digits, '-', '_' and '.', at most 80, and begin with a letter or digit"
    # Who writes a key itself there must not find it in a log.
    hides = first["type"] == "extra_forbidden" or first["loc"][-1:] in (("key_env",), ("url",))
    shown = f"{key} = {first['input']!r:.60}: " if key and not hides else f"{key}: " * bool(key)
    return SetupError(f"{path}: {shown}{message}; {remedy}", file=str(path), key=key)


def _section_at(place: tuple[int | str, ...]) -> type[BaseModel]:
    """The section in which a key stands."""
    if place[0] == "aliases" and len(place) == 3:
        return AliasOptions
    if place[0] == "models" and "remote" in place[2:3] and len(place) == 4:
        return RemoteOptions
    # By depth: top level, [defaults], [models.M], its replicas, one of its adapters.
    sections: tuple[type[BaseModel], ...] = (CatalogConfig, Defaults, ModelOptions, ReplicaOptions, AdapterOptions)
    return sections[len(place) - 1]


def _message(error: ValidationError) -> str:
    return str(error.errors(include_url=False, include_context=False)[0]["msg"]).removeprefix("Value error, ")
