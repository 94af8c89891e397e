"""JSON schemas as they can be enforced token by token: which keywords, how large, how deep.

Whoever asks for `uniqueItems` and gets doubles is worse off than with an error. So what is not enforced is refused, by
name and place, before the job is even queued. Pure, no library: the client runs it, where no engine is installed. What
only the engine can tell, as whether a `pattern` is a regular expression it has, comes back as the job's error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import product
from typing import Any

#: Of the schema as compact JSON. Compiling costs at most a few 100 ms at these bounds.
MAX_CHARS = 64 * 1024
#: Schemas within schemas; the engine's JSON reader takes 128 levels, of which one schema may need three.
MAX_DEPTH = 32
#: Properties of one object, alternatives of one union. Optional ones stand side by side in the parser, four items each
#: of at most 2,000.
MAX_SIDE_BY_SIDE = 256
#: minLength, maxItems and their like. A lexer needs some three states for each character of a bounded string.
MAX_COUNT = 10_000
#: A divisor's digits without its decimal point: the automaton has a state for each remainder; 99,991 took 1 s to build.
MAX_DIVISOR = 20_000
MAX_PATTERN_CHARS = 1024

FORMATS = frozenset({"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"})
_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_ANNOTATIONS = frozenset(
    {"$comment", "default", "deprecated", "description", "discriminator", "examples", "readOnly", "title", "writeOnly"}
)
_SCHEMAS = frozenset({"additionalProperties", "items"})
_SCHEMA_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SCHEMA_MAPS = frozenset({"$defs", "definitions", "patternProperties", "properties"})
_COUNTS = frozenset({"maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"})
_NUMBERS = frozenset({"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"})
_OTHERS = frozenset({"$ref", "const", "enum", "format", "pattern", "required", "type"})
_KEYWORDS = _ANNOTATIONS | _SCHEMAS | _SCHEMA_LISTS | _SCHEMA_MAPS | _COUNTS | _NUMBERS | _OTHERS
_ROOT_ONLY = frozenset({"$id", "$schema"})


def check_schema(schema: Mapping[str, Any]) -> None:
    """That an output can be held to this schema, as far as the schema alone shows it.

    Raises:
        ValueError: It cannot; the message names place, value and remedy.
    """
    try:
        size = len(json.dumps(schema, separators=(",", ":"), ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the schema is no JSON ({error})") from None
    if size > MAX_CHARS:
        raise ValueError(f"the schema has {size} characters as compact JSON, at most {MAX_CHARS} are allowed")
    _check(schema, "#", schema, depth=0)
    _check_bounds(schema)
    _check_that_it_ends(schema)


def every_schema(schema: object) -> Iterator[Mapping[str, Any]]:
    """A schema and all inside it. Keywords must have values of their kind."""
    if isinstance(schema, Mapping):
        yield schema
        for keyword, value in schema.items():
            for _, part in _parts(keyword, value):
                yield from every_schema(part)


def _check(schema: object, where: str, root: Mapping[str, Any], depth: int) -> None:
    if isinstance(schema, bool) and where != "#":
        return
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where} is {_shown(schema)} where a schema is expected")
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested more than {MAX_DEPTH} schemas deep; flatten it, or use $defs")
    known = _KEYWORDS | (_ROOT_ONLY if where == "#" else frozenset())
    if unknown := sorted(set(map(str, schema)) - known):
        raise ValueError(f"{where} has {unknown[0]!r}, which cannot be enforced; leave it out and check it afterwards")
    for keyword, value in schema.items():
        at = f"{where}/{keyword}"
        _check_value(keyword, value, at, root)
        for name, part in _parts(keyword, value):
            _check(part, f"{at}/{name}" if name else at, root, depth + 1)
    required = schema.get("required", ())
    # Additional properties may repeat a name, and what reads JSON keeps the last: so only one of them is sure to count.
    if schema.get("minProperties", 0) > len(required) + 1:
        raise ValueError(
            f"{where}/minProperties is {schema['minProperties']}, {len(required)} properties are required; "
            "it can ask for one more than are required, name the others"
        )


def _check_value(keyword: str, value: object, at: str, root: Mapping[str, Any]) -> None:
    if keyword in _SCHEMA_LISTS:
        if not isinstance(value, list | tuple) or not value or len(value) > MAX_SIDE_BY_SIDE:
            raise ValueError(f"{at} is {_shown(value)}; give a list of 1 to {MAX_SIDE_BY_SIDE} schemas")
    elif keyword in _SCHEMA_MAPS:
        if not isinstance(value, Mapping) or (not keyword.endswith("efs") and len(value) > MAX_SIDE_BY_SIDE):
            raise ValueError(f"{at} is {_shown(value)}; give at most {MAX_SIDE_BY_SIDE} schemas by name")
    elif keyword in _COUNTS:
        if type(value) is not int or not 0 <= value <= MAX_COUNT:
            raise ValueError(f"{at} is {_shown(value)}; give a whole number from 0 to {MAX_COUNT}")
    elif keyword in _NUMBERS:
        if type(value) not in (int, float):
            raise ValueError(f"{at} is {_shown(value)}; give a number")
        if keyword == "multipleOf" and not 0 < _digits(value) <= MAX_DIVISOR:
            raise ValueError(f"{at} is {_shown(value)}; its digits as a whole number must be from 1 to {MAX_DIVISOR}")
    elif keyword == "$ref":
        if value != "#" and _named(value, root) is None:
            raise ValueError(f"{at} is {_shown(value)}; refer to a schema in this one, as '#/$defs/name'")
    elif keyword == "type":
        names = list(value) if isinstance(value, list | tuple) else [value]
        if not names or not all(isinstance(name, str) and name in _TYPES for name in names):
            raise ValueError(f"{at} is {_shown(value)}; types are {', '.join(sorted(_TYPES))}")
    elif keyword == "format":
        if value not in FORMATS:
            raise ValueError(f"{at} is {_shown(value)}; formats are {', '.join(sorted(FORMATS))}")
    elif keyword == "pattern":
        if not isinstance(value, str) or len(value) > MAX_PATTERN_CHARS:
            raise ValueError(f"{at} is {_shown(value)}; give at most {MAX_PATTERN_CHARS} characters")
    elif keyword == "enum":
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"{at} is {_shown(value)}; give at least one value")
    elif keyword == "required" and not (isinstance(value, list | tuple) and all(isinstance(n, str) for n in value)):
        raise ValueError(f"{at} is {_shown(value)}; give a list of names")


def _parts(keyword: str, value: Any) -> Iterator[tuple[str, object]]:
    """The schemas inside a keyword's value, with their names."""
    if keyword in _SCHEMAS:
        yield "", value
    elif keyword in _SCHEMA_LISTS:
        yield from ((str(index), part) for index, part in enumerate(value))
    elif keyword in _SCHEMA_MAPS:
        yield from ((str(name), part) for name, part in value.items())


def _digits(number: Any) -> int:
    digits = Decimal(repr(number)).normalize().as_tuple()
    exponent = digits.exponent if isinstance(digits.exponent, int) else 0
    # The exponent is cut where the value is out of bounds anyway.
    whole = int("".join(map(str, digits.digits)) + "0" * max(0, min(exponent, 9)))
    return -whole if digits.sign else whole


def _named(ref: object, root: Mapping[str, Any]) -> object:
    """What "#/$defs/name" refers to, None if it is nothing."""
    parts = ref.split("/") if isinstance(ref, str) else []
    if len(parts) != 3 or parts[0] != "#" or parts[1] not in ("$defs", "definitions"):
        return None
    definitions = root.get(parts[1])
    name = parts[2].replace("~1", "/").replace("~0", "~")
    return definitions.get(name) if isinstance(definitions, Mapping) else None


def _check_bounds(root: Mapping[str, Any]) -> None:
    """Refuse what llguidance 1.9.1 gets wrong: with a maximum of 0.5 it lets 0 pass an exclusiveMinimum of 0.

    It does so for numbers whose exclusive bound is whole, and whose other bound is less than 1 away from it.
    """
    every = [schema for schema in every_schema(root) if schema.get("type") != "integer"]
    groups = [[schema] for schema in every]
    # Bounds of several schemas may come to hold for one value; which ones, only the engine knows.
    if any("allOf" in s or (s.keys() & {"$ref", "anyOf", "oneOf"} and s.keys() & _NUMBERS) for s in every):
        groups.append(every)
    for group in groups:
        for sign, exclusive, others in (
            (1, "exclusiveMinimum", ("maximum", "exclusiveMaximum")),
            (-1, "exclusiveMaximum", ("minimum", "exclusiveMinimum")),
        ):
            wholes = [schema[exclusive] for schema in group if schema.get(exclusive, 0.5) % 1 == 0]
            ends = [schema[name] for schema in group for name in others if name in schema]
            for whole, end in product(wholes, ends):
                if 0 < sign * (end - whole) < 1:
                    raise ValueError(
                        f"{exclusive} is {whole}, less than 1 away from the other bound, {end}; "
                        f"such an interval must be closed, use {exclusive[9:].lower()}"
                    )


def _check_that_it_ends(root: Mapping[str, Any]) -> None:
    """Refuse a schema that needs itself, as a list node whose `next` is required: no value of it is finite."""
    state: dict[int, bool] = {}  # id of a schema: True once it is known to end, False while it is looked at

    def visit(schema: object, where: str) -> None:
        if not isinstance(schema, Mapping) or state.get(id(schema)):
            return
        if id(schema) in state:
            raise ValueError(f"{where} needs itself without end; make one of the steps optional or nullable")
        state[id(schema)] = False
        for name, part in _needed(schema, root):
            visit(part, f"{where}/{name}")
        state[id(schema)] = True

    try:
        visit(root, "#")
    except RecursionError:
        raise ValueError("the schema refers through too many schemas to follow; merge some") from None


def _needed(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Schemas that every value of this one holds a value of. Unions are not looked into: another branch may end."""
    if ref := schema.get("$ref"):
        yield "$ref", root if ref == "#" else _named(ref, root)
    yield from ((f"allOf/{index}", part) for index, part in enumerate(schema.get("allOf", ())))
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        needed = [name for name in schema.get("required", ()) if name in properties]
        yield from ((f"properties/{name}", properties[name]) for name in needed)
    if schema.get("type") == "array":
        prefix = schema.get("prefixItems", ())
        least = schema.get("minItems", 0)
        yield from ((f"prefixItems/{index}", part) for index, part in enumerate(prefix[:least]))
        if least > len(prefix):
            yield "items", schema.get("items")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
