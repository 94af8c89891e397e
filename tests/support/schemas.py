"""Random JSON schemas that most models end in a few hundred tokens, made of every keyword that is enforced."""

from __future__ import annotations

from random import Random
from typing import Any

NAMES = ("a", "b", "name", "größe", 'with "quotes"', "with space")
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -7,
    3.25,
    "",
    "text",
    "ä\n\"'\\",
    "\U0001f600",
    [],
    [1, "x"],
    {"k": None},
)


def random_schema(rng: Random) -> dict[str, Any]:
    """A schema; an equal `rng` gives an equal one."""
    schema = _schema(rng, depth=0)
    if rng.random() < 0.05:  # a chain of any length: a model that likes it never ends
        schema = {
            "$defs": {"part": schema, "end": {"type": "null"}},
            "type": "object",
            "properties": {
                "part": {"$ref": "#/$defs/part"},
                "next": {"anyOf": [{"$ref": "#"}, {"$ref": "#/$defs/end"}]},
            },
            "required": ["next"],
            "additionalProperties": False,
        }
    return schema


def _schema(rng: Random, depth: int) -> dict[str, Any]:
    makers = [_integer, _number, _string, _enum, _literal, _simple]
    if depth < 3:
        nesting = [_object, _array, _union, _map, _tuple, _both]
        makers = nesting * 2 + makers if depth == 0 else nesting + makers
    return rng.choice(makers)(rng, depth + 1)


def _integer(rng: Random, depth: int) -> dict[str, Any]:
    low = rng.choice((-1_000_000, -17, 0, 1, 42))
    schema: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": low + rng.choice((0, 9, 12345))}
    if rng.random() < 0.3:
        schema = {"type": "integer", "exclusiveMinimum": low - 1, "exclusiveMaximum": low + 100, "multipleOf": 7}
    return schema


def _number(rng: Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.5:
        low = rng.choice((-0.5, 3.25, 20))  # far from all bounds below, see json_schema.py
        return {"type": "number", "exclusiveMinimum": low, rng.choice(("maximum", "exclusiveMaximum")): low + 3}
    low = rng.choice((-7.75, 0.25, 1000))
    return {"type": "number", "minimum": low, "maximum": low + rng.choice((0.5, 3))}


def _string(rng: Random, depth: int) -> dict[str, Any]:
    if (kind := rng.random()) < 0.2:
        return {"type": "string", "pattern": rng.choice(("^[a-z]{1,8}$", r"^\d{3}-\d{2}$", "^(on|off)$", "^[^ab]{2}$"))}
    if kind < 0.4:
        return {"type": "string", "format": rng.choice(("date", "ipv4", "ipv6", "uuid", "date-time"))}
    low = rng.randrange(4)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(12)}


def _enum(rng: Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(_VALUES, rng.randrange(1, 6))}


def _literal(rng: Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(_VALUES)}


def _simple(rng: Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(("null", "boolean", ["null", "boolean"])), "description": "as it is", "title": "T"}


def _object(rng: Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randrange(len(NAMES)))
    required = [name for name in names if rng.random() < 0.6]
    return {
        "type": "object",
        "properties": {name: _schema(rng, depth) for name in names},
        "required": required,
        "additionalProperties": False,
    }


def _map(rng: Random, depth: int) -> dict[str, Any]:
    least = rng.randrange(2)
    return {
        "type": "object",
        "patternProperties": {"^[a-z]{1,5}$": _schema(rng, depth)},
        "additionalProperties": False,
        "minProperties": least,
        "maxProperties": least + rng.randrange(3),
    }


def _array(rng: Random, depth: int) -> dict[str, Any]:
    least = rng.randrange(3)
    return {"type": "array", "items": _schema(rng, depth), "minItems": least, "maxItems": least + rng.randrange(3)}


def _tuple(rng: Random, depth: int) -> dict[str, Any]:
    parts = [_schema(rng, depth) for _ in range(rng.randrange(1, 4))]
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": rng.randrange(len(parts) + 1)}


def _union(rng: Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.3:
        tagged = [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "value": _schema(rng, depth)},
                "required": ["kind"],
                "additionalProperties": False,
            }
            for kind in ("first", "second")
        ]
        return {"oneOf": tagged, "discriminator": {"propertyName": "kind"}}
    return {"anyOf": [_schema(rng, depth) for _ in range(rng.randrange(1, 4))]}


def _both(rng: Random, depth: int) -> dict[str, Any]:
    part, other = rng.sample(NAMES, 2)
    return {
        "allOf": [
            {"type": "object", "properties": {part: _schema(rng, depth)}, "required": [part]},
            {"type": "object", "properties": {other: _schema(rng, depth)}, "required": [other]},
        ],
        "maxProperties": 2,
    }
