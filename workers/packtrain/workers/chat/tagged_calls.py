"""Tool calls that are no JSON: an element for each argument (Qwen3-Coder, Step, GLM, MiniMax), and Gemma's notation.

They are read when their region is complete, for an argument's type is known from the tool's schema only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from packtrain.workers.chat.families import GEMMA_QUOTE, CallSyntax

#: Properties of each tool's schema, by the tool's name.
Properties = Mapping[str, Mapping[str, Any]]

_GEMMA_CALL = re.compile(r"\s*call:(?P<name>[^{\s]+)\s*\{(?P<body>.*)\}\s*\Z", re.DOTALL)
_GEMMA_KEY = re.compile(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:")


def read_region(syntax: CallSyntax, body: str, properties: Properties) -> list[tuple[str, str]]:
    """(name, arguments as JSON) of each call between the marks of a region; none when it holds no call."""
    if syntax.style == "gemma":
        return _read_gemma(body)
    calls = []
    for found in re.finditer(syntax.call, body, re.DOTALL):
        name = found["name"].strip()
        types = properties.get(name, {})
        pairs = re.finditer(syntax.argument, found["body"], re.DOTALL)
        arguments = {pair["key"].strip(): _value(pair["value"], types.get(pair["key"].strip())) for pair in pairs}
        calls.append((name, json.dumps(arguments, ensure_ascii=False)))
    return calls


def _value(text: str, schema: object) -> Any:
    """An argument's value: text as it stands where the schema wants text, else the JSON that it is."""
    text = text.removeprefix("\n").removesuffix("\n")
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_gemma(body: str) -> list[tuple[str, str]]:
    found = _GEMMA_CALL.match(body)
    if found is None:
        return []
    parts = ("{" + found["body"] + "}").split(GEMMA_QUOTE)
    # Every second part stood between quotes; keys stand outside of them without any.
    texts = [json.dumps(p, ensure_ascii=False) if i % 2 else _GEMMA_KEY.sub(r'\1"\2":', p) for i, p in enumerate(parts)]
    try:
        return [(found["name"], json.dumps(json.loads("".join(texts)), ensure_ascii=False))]
    except (ValueError, RecursionError):
        return []
