"""What form an output must have: free text, a JSON object, JSON of a schema, or a text of a grammar.

These are OpenAI's three kinds of `response_format`, and GBNF, llama.cpp's grammar notation, as a fourth. The form is
enforced while the tokens are drawn (`workers/.../backends/constraint.py`), so what ends with "stop" has it. Only
`max_tokens` cuts it short: then the finish reason is "length".
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.errors import PydanticInvalidForJsonSchema

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.gbnf import to_lark
from packtrain.broker.json_schema import check_schema, every_schema

#: Characters of fixed text before or behind the JSON.
MAX_AFFIX_CHARS = 1024

_STRICT = ConfigDict(extra="forbid")


def _enforceable(schema: dict[str, Any]) -> dict[str, Any]:
    check_schema(schema)
    return schema


def _readable(grammar: str) -> str:
    to_lark(grammar)
    return grammar


# Not models but dataclasses: a model cannot have a field `schema`.
@dataclass(frozen=True, config=_STRICT)
class FreeText:
    """Whatever the model says."""

    type: Literal["text"] = "text"


@dataclass(frozen=True, config=_STRICT)
class JsonObject:
    """Any JSON object. Say in the prompt which one: a model that is only held to the form may fill it at length."""

    type: Literal["json_object"] = "json_object"


@dataclass(frozen=True, config=_STRICT)
class JsonSchema:
    """JSON of this schema (draft 2020-12), its properties in the schema's order.

    Args:
        schema: See `json_schema.py` for what is enforced; all else is refused.
        prefix: Text before the JSON, as `<tool_call>`; tokens without text cannot be asked for.
        suffix: Text behind it.
    """

    schema: Annotated[dict[str, Any], AfterValidator(_enforceable)]
    type: Literal["json_schema"] = "json_schema"
    prefix: Annotated[str, Field(max_length=MAX_AFFIX_CHARS)] = ""
    suffix: Annotated[str, Field(max_length=MAX_AFFIX_CHARS)] = ""


@dataclass(frozen=True, config=_STRICT)
class Grammar:
    """A text that the rule `root` of a GBNF grammar derives."""

    grammar: Annotated[str, AfterValidator(_readable)]
    type: Literal["grammar"] = "grammar"


def _flattened(value: Any) -> Any:
    """OpenAI nests the schema: {"type": "json_schema", "json_schema": {"name", "schema", "strict"}}."""
    if not isinstance(value, Mapping) or "json_schema" not in value:
        return value
    nested = value["json_schema"]
    if not isinstance(nested, Mapping) or "schema" not in nested:
        raise ValueError("json_schema needs a `schema`, as {'name': 'person', 'schema': {...}}")
    # `strict` false would allow us to be lax; nobody gains by it.
    unknown = nested.keys() - {"name", "description", "schema", "strict"}
    if unknown:
        raise ValueError(f"json_schema has no field {min(unknown)!r}")
    return {**{name: part for name, part in value.items() if name != "json_schema"}, "schema": nested["schema"]}


ResponseFormat = Annotated[
    Annotated[FreeText | JsonObject | JsonSchema | Grammar, Field(discriminator="type")], BeforeValidator(_flattened)
]


def json_format(schema: Mapping[str, Any] | type[BaseModel], *, prefix: str = "", suffix: str = "") -> JsonSchema:
    """JSON of this schema, or of this pydantic model with no fields but its own, between two fixed texts.

    Raises:
        InvalidParameter: The schema cannot be enforced.
    """
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        model = schema
        try:
            schema = model.model_json_schema()
        except PydanticInvalidForJsonSchema as error:
            raise InvalidParameter(f"{model.__name__} has no JSON schema ({error}); change its fields") from error
        # pydantic leaves open what it ignores; a small model would go on with names of its own invention.
        schema = _closed(schema)
    if not isinstance(schema, Mapping):
        raise InvalidParameter(
            f"a schema is a dict or a pydantic model, not {schema!r}; parse it first if it is text",
            field="response_format",
        )
    try:
        return JsonSchema(schema=dict(schema), prefix=prefix, suffix=suffix)
    except ValidationError as error:
        reason = error.errors(include_url=False, include_context=False)[0]["msg"].removeprefix("Value error, ")
        raise InvalidParameter(f"schema: {reason}; correct it", field="response_format") from None


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    closed = deepcopy(schema)
    for part in every_schema(closed):
        if isinstance(part, dict) and "properties" in part:
            part.setdefault("additionalProperties", False)
    return closed
