"""Which JSON schemas are taken, and what is said of the others."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packtrain.broker.json_schema import MAX_CHARS, MAX_DEPTH, MAX_SIDE_BY_SIDE, check_schema
from tests.support.schemas import random_schema

pytestmark = pytest.mark.unit


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"uniqueItems": True}, "# has 'uniqueItems', which cannot be enforced"),
        (object_of(a={"not": {}}), "#/properties/a has 'not'"),
        ({"x-guidance": {"lenient": True}}, "'x-guidance'"),
        ({"typ": "string"}, "'typ'"),
        ({"items": {"$id": "x"}}, "#/items has '\\$id'"),
        ({"type": "float"}, "#/type is 'float'; types are array"),
        ({"type": []}, "#/type is"),
        ({"items": [{}]}, "#/items is .* where a schema is expected"),
        ({"anyOf": []}, "#/anyOf is"),
        ({"anyOf": [3]}, "#/anyOf/0 is 3 where a schema is expected"),
        ({"properties": []}, "#/properties is"),
        ({"minLength": -1}, "#/minLength is -1; give a whole number from 0 to 10000"),
        ({"maxItems": 10_001}, "#/maxItems is 10001"),
        ({"maxLength": True}, "#/maxLength is True"),
        ({"minimum": "3"}, "#/minimum is '3'; give a number"),
        ({"exclusiveMinimum": True}, "#/exclusiveMinimum is True"),
        ({"minimum": float("nan")}, "no JSON"),
        ({"multipleOf": 0}, "#/multipleOf is 0"),
        ({"multipleOf": -2}, "#/multipleOf is -2"),
        ({"multipleOf": 99991}, "#/multipleOf is 99991"),
        ({"multipleOf": 0.99991}, "#/multipleOf is 0.99991"),
        ({"multipleOf": 1e10}, "#/multipleOf is 1"),
        ({"format": "color"}, "#/format is 'color'; formats are date"),
        ({"pattern": 3}, "#/pattern is 3"),
        ({"pattern": "a" * 1025}, "#/pattern is .* at most 1024"),
        ({"enum": []}, "#/enum is"),
        ({"required": "a"}, "#/required is 'a'"),
        ({"$ref": "http://localhost/schema"}, r"#/\$ref is .* refer to a schema in this one"),
        ({"$ref": "#/properties/a"}, r"#/\$ref is"),
        ({"$ref": "#/$defs/a", "$defs": {"b": {}}}, r"#/\$ref is"),
        ({"minProperties": 2}, "#/minProperties is 2, 0 properties are required"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "exclusiveMinimum is 0, less than 1 away"),
        ({"exclusiveMaximum": -1, "minimum": -1.5}, "exclusiveMaximum is -1, less than 1 away.* use maximum"),
        ({"allOf": [{"exclusiveMinimum": 0}, {"maximum": 0.5}]}, "exclusiveMinimum is 0, less than 1 away"),
        ({"const": object()}, "no JSON"),
        (nested(MAX_DEPTH + 1), "nested more than"),
        ({"enum": ["a" * MAX_CHARS]}, "characters as compact JSON"),
        (object_of(**{f"p{i}": {} for i in range(MAX_SIDE_BY_SIDE + 1)}), "at most 256"),
    ],
    ids=lambda part: str(part).split(" at 0x")[0][:60],  # the same in every process that collects them
)
def test_what_cannot_be_enforced_is_refused_by_name_and_place(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        object_of(next={"$ref": "#"}),
        {"allOf": [object_of(next={"$ref": "#"})]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
    ],
    ids=str,
)
def test_a_schema_that_needs_itself_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs itself without end"):
        check_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "x", "title": "T", "default": 3},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        object_of(next={"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
        object_of(a={"$ref": "#/$defs/a"}, b={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"type": "string"}}},
        {"$ref": "#/definitions/a~1b", "definitions": {"a/b": {}}},
        {"type": ["object", "null"], "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"items": False, "prefixItems": [True, {}]},
        {"multipleOf": 0.01, "minimum": -1e300},
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "integer", "exclusiveMinimum": 0, "maximum": 0.5},
        object_of(a={"exclusiveMinimum": 0}, b={"maximum": 0.5}),
        {"type": "object", "minProperties": 2, "required": ["a"]},
        nested(MAX_DEPTH),
        object_of(properties={"type": "string"}, required={"type": "null"}),
    ],
    ids=str,
)
def test_what_can_be_enforced_is_taken(schema: dict[str, Any]) -> None:
    check_schema(schema)


def test_a_chain_of_references_too_long_to_follow_is_refused() -> None:
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1500)}

    with pytest.raises(ValueError, match="too many schemas"):
        check_schema({"$ref": "#/$defs/d0", "$defs": {**chain, "d1500": {}}})


@given(st.randoms(use_true_random=False))
def test_random_schemas_of_all_keywords_are_taken(rng: Random) -> None:
    check_schema(random_schema(rng))


_KEYWORDS = st.sampled_from(
    ["type", "items", "properties", "$ref", "allOf", "required", "minItems", "multipleOf", "$defs"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["object", "array", "#"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_KEYWORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_KEYWORDS, _JSON, max_size=3))
def test_any_json_is_taken_or_refused_and_nothing_else(schema: dict[str, Any]) -> None:
    with suppress(ValueError):
        check_schema(schema)
