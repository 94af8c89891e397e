"""A model's chat template: Jinja as Transformers sets it up, for that is what templates are written for.

The same extensions, filters and variables as `Jinja2ChatFormatter` of llama-cpp-python, so the same prompts
(tests/unit/test_template.py compares them), and nothing is imported but Jinja. The sandbox keeps a template from
Python's insides, not from taking time and memory: `template_process` bounds these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja. It may do anything on being compiled and rendered that the sandbox lets it.
        max_chars: Of a prompt.

    Raises:
        Exception: It cannot be compiled.
    """

    def __init__(self, source: str, *, bos_token: str, eos_token: str, max_chars: int) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTags, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        self._template = environment.from_string(source)
        self._max_chars = max_chars
        self._constants = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "add_generation_prompt": True,
            "functions": None,
            "function_call": None,
            "tools": None,
            "tool_choice": None,
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }

    def render(self, variables: Mapping[str, Any]) -> str:
        """The prompt.

        Raises:
            Exception: The template refuses these variables, or makes too much of them.
        """
        pieces, size = [], 0
        for piece in self._template.generate({**self._constants, **variables}):
            pieces.append(piece)
            size += len(piece)
            if size > self._max_chars:
                raise ValueError(f"it makes more than {self._max_chars} characters of them")
        return "".join(pieces)


class _GenerationTags(Extension):
    """`{% generation %}` marks what a model is trained on; nothing but its body is of use here."""

    tags = {"generation"}  # noqa: RUF012  as Jinja declares it

    def parse(self, parser: Parser) -> list[Node]:
        parser.stream.skip(1)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
