"""The forms that a request may ask for, and the ways to ask."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.job_spec import JobSpec, parse_spec
from packtrain.broker.structured import FreeText, Grammar, JsonObject, JsonSchema, json_format
from packtrain.client.request import build_spec

pytestmark = pytest.mark.unit

PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}


class Person(BaseModel):
    name: str
    age: int


def request(**options: Any) -> JobSpec:
    return build_spec("m", "Hi", raw=False, stream=True, expires_in=None, options=options)


def form(**options: Any) -> object:
    return request(**options).params.response_format


def test_without_a_word_about_it_the_text_is_free() -> None:
    assert form() == form(json=False) == form(response_format={"type": "text"}) == FreeText()


def test_openais_shape_and_the_flat_one_mean_the_same() -> None:
    nested = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    flat = {"type": "json_schema", "schema": PERSON}

    assert form(response_format=nested) == form(response_format=flat) == form(schema=PERSON) == JsonSchema(PERSON)


class Team(BaseModel):
    lead: Person
    others: dict[str, Person] = {}


def test_a_pydantic_model_stands_for_its_schema_with_no_fields_but_its_own() -> None:
    closed = Person.model_json_schema() | {"additionalProperties": False}
    team = json_format(Team).schema

    assert form(schema=Person) == JsonSchema(closed)
    assert team["$defs"]["Person"] == closed
    assert team["additionalProperties"] is False
    assert team["properties"]["others"]["additionalProperties"] == {"$ref": "#/$defs/Person"}


def test_the_short_names_stand_for_formats() -> None:
    assert form(json=True) == form(response_format={"type": "json_object"}) == JsonObject()
    assert form(grammar='root ::= "a"') == Grammar('root ::= "a"')


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"json": True, "schema": PERSON}, "say twice"),
        ({"grammar": "x", "response_format": {"type": "text"}}, "say twice"),
        ({"schema": "{}"}, "not '{}'; parse it first"),
        ({"schema": {"uniqueItems": True}}, "'uniqueItems'"),
        ({"grammar": 'root ::= "'}, "line 1"),
        ({"grammar": 3}, "grammar"),
        ({"response_format": {"type": "yaml"}}, "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "needs a `schema`"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}}, "no field 'x'"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "schema"),
        ({"response_format": "json"}, "response_format"),
        ({"json": True, "ignore_eos": True}, "ignore_eos goes on past the end"),
    ],
    ids=str,
)
def test_a_form_that_cannot_be_is_an_error_before_anything_is_queued(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidParameter, match=says):
        request(**options)


@pytest.mark.parametrize("options", [{"schema": PERSON}, {"json": True}, {"grammar": "root ::= [ä]"}], ids=str)
def test_a_form_survives_the_wire_with_its_order(options: dict[str, Any]) -> None:
    spec = request(**options)

    again = JobSpec.model_validate_json(spec.model_dump_json())

    assert again == spec
    assert again.model_dump_json() == spec.model_dump_json()
    assert again.digest() == spec.digest()


def test_another_form_or_order_is_another_request() -> None:
    turned = {**PERSON, "properties": dict(reversed(PERSON["properties"].items()))}  # type: ignore[attr-defined]

    digests = {request(**o).digest() for o in ({}, {"json": True}, {"schema": PERSON}, {"schema": turned})}

    assert len(digests) == 4


def test_a_json_format_stands_between_its_fixed_texts() -> None:
    made = json_format(Person, prefix="<tool_call>\n", suffix="\n</tool_call>")

    spec = parse_spec(
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "params": {"response_format": made}}
    )

    assert spec.params.response_format == made
    with pytest.raises(InvalidParameter, match="'not'"):
        json_format({"not": {}})


def test_a_model_without_a_schema_is_named() -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        thing: pytest.Item

    with pytest.raises(InvalidParameter, match="Odd has no JSON schema"):
        json_format(Odd)
