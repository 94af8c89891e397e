"""Markdown tables of a JSON schema: what pydantic says of settings, of packtrain.toml and of the gateway's bodies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

_BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a cell may hold Markdown of one line."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def plain(text: str) -> str:
    """Text that is no Markdown but for its `code`, as it should be seen: `<home>` is no tag of HTML."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


def _cell(text: str) -> str:
    return " ".join(plain(text).split()).replace("|", "\\|")


def code(text: str) -> str:
    """`text` as code, empty when it is."""
    return f"`{text}`" if text else ""


def fields(schema: Schema, definitions: Schema) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and description of each property; the default of one that must be given is "required"."""
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in required else code(default_of(field))
        yield name, type_of(field, definitions), default, str(field.get("description", ""))


def default_of(field: Schema) -> str:
    """The default as JSON and TOML write it; empty where leaving out means something that the description says."""
    value = field.get("default")
    if value is None or value in ({}, []) or isinstance(value, dict):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def type_of(field: Schema, definitions: Schema) -> str:
    """A type in words and code, with its bounds; a named one is a link to its own table on the same page."""
    if "$ref" in field:
        name = str(field["$ref"]).rsplit("/", 1)[-1]
        found = definitions.get(name, {})
        return link_to(name) if found.get("properties") else type_of(found, definitions)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in field:
            kinds = [type_of(kind, definitions) for kind in field[several] if kind.get("type") != "null"]
            return " or ".join(dict.fromkeys(kind for kind in kinds if kind))
    if "enum" in field:
        return ", ".join(code(str(value)) for value in field["enum"])
    if "const" in field:
        return code(str(field["const"]))
    bounds = [form.format(f"{field[bound]:,}") for bound, form in _BOUNDS.items() if bound in field]
    return ", ".join([_plain_type(field, definitions), *bounds])


def _plain_type(field: Schema, definitions: Schema) -> str:
    match field.get("type"):
        case "array":
            return f"list of {type_of(field.get('items', {}), definitions) or 'anything'}"
        case "object" if isinstance(field.get("additionalProperties"), dict):
            return f"table of {type_of(field['additionalProperties'], definitions) or 'anything'}"
        case "object":
            return "table"
        case "string" if field.get("format") == "path":
            return "path"
        case "string":
            return "text"
        case None:
            return ""
        case other:
            return str(other)


def title(name: str) -> str:
    """What a named type is called on the page: without the module that pydantic puts before names that occur twice."""
    *modules, last = name.split("__")
    owner = {"ollama": "Ollama", "openai": "OpenAI"}.get(modules[-2] if len(modules) > 1 else "", "")
    return f"{last} of {owner}" if owner else last


def link_to(name: str) -> str:
    """A link to the heading of a named type."""
    return f"[{title(name)}](#{title(name).lower().replace(' ', '-')})"
