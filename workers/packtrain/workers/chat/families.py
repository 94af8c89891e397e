"""Families of chat formats: how a model marks its reasoning and its tool calls, told from its template's text.

Templates are written by hand for each model, but the marks they use come from few families. What the table below does
not know is plain text. A mark may be a special token, whose text a backend would hide; `ChatFormat.marks` says which
must be shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """Around what a model thinks before it answers."""

    open: str
    close: str


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How a model writes tool calls: a region with one or more of them.

    `json`:  {"name": ..., "arguments": {...}} or, with `header`, a name before its arguments: name{...}
    `tags`:  an element for each argument
    `gemma`: call:name{key:<|"|>text<|"|>,other:1}
    """

    open: str
    close: str = ""  # nothing: the region lasts to the end
    style: Literal["json", "tags", "gemma"] = "json"
    header: str = ""  # json: a pattern with the group `name`
    skip: tuple[str, ...] = ()  # json: marks between calls that say nothing
    call: str = ""  # tags: a pattern with the groups `name` and `body`
    argument: str = ""  # tags: a pattern with the groups `key` and `value`


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What a template tells of its model."""

    reasoning: ReasoningMarks | None = None
    calls: tuple[CallSyntax, ...] = ()
    has_bare_calls: bool = False  # an answer that begins with a JSON object may be a call
    is_harmony: bool = False  # channels, as of gpt-oss
    knows_tools: bool = False  # the template puts tools into the prompt
    switches: frozenset[str] = frozenset()  # variables of the template that turn reasoning on, off, up or down
    wants_null_content: bool = False  # beside tool calls
    wants_short_ids: bool = False  # of tool calls: nine letters and digits
    knows_developer: bool = False
    knows_system: bool = True

    @property
    def marks(self) -> frozenset[str]:
        """Special tokens that belong to the answer's text, because they mark its parts."""
        if self.is_harmony:
            return frozenset(HARMONY_MARKS)
        marks = {self.reasoning.open, self.reasoning.close} if self.reasoning else set()
        for syntax in self.calls:
            marks |= {syntax.open, syntax.close, *syntax.skip}
            marks |= set(re.findall(r"<[^<>()\[\]]+>|\[[A-Z_]+\]", syntax.header.replace("\\", "")))
        if GEMMA.open in marks:
            marks |= {GEMMA_QUOTE, "<|channel>"}
        return frozenset(marks - {""})


HARMONY_MARKS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
GEMMA_QUOTE = '<|"|>'
THINK = ReasoningMarks("<think>", "</think>")
_REASONING = (
    ReasoningMarks("[THINK]", "[/THINK]"),
    ReasoningMarks("<seed:think>", "</seed:think>"),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningMarks("<|channel>thought", "<channel|>"),
    ReasoningMarks("Here is my thought process:", "Here is my response:"),
)

_FUNCTION = r"<function=(?P<name>[^>\n]+)>(?P<body>.*?)(?:</function>|(?=<function=)|\Z)"
_PARAMETER = r"<parameter=(?P<key>[^>\n]+)>(?P<value>.*?)(?:</parameter>|(?=<parameter=)|\Z)"
_INVOKE = r"""<{0}invoke name=["'](?P<name>[^"']+)["'][^>]*>(?P<body>.*?)(?:</{0}invoke>|\Z)"""
_INVOKE_PARAMETER = r"""<{0}parameter name=["'](?P<key>[^"']+)["'][^>]*>(?P<value>.*?)(?:</{0}parameter>|\Z)"""
_DSML = "\uff5cDSML\uff5c"  # ｜DSML｜

HERMES = CallSyntax("<tool_call>", "</tool_call>")
GEMMA = CallSyntax("<|tool_call>", "<tool_call|>", "gemma")
MISTRAL = CallSyntax(
    "[TOOL_CALLS]", skip=("[TOOL_CALLS]",), header=r"(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?"
)
DEEPSEEK = CallSyntax(
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    skip=("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    header=r"(?:function<｜tool▁sep｜>)?(?P<name>[\w.-]+)(?:<｜tool▁sep｜>)?(?:\s*```(?:json)?)?",
)
KIMI = CallSyntax(
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    skip=("<|tool_call_begin|>", "<|tool_call_end|>"),
    header=r"(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>",
)
QWEN_CODER = CallSyntax("<tool_call>", "</tool_call>", "tags", call=_FUNCTION, argument=_PARAMETER)

#: What a template must contain, and the syntax it teaches. The first that fits is taken.
_CALLS: tuple[tuple[str, CallSyntax], ...] = (
    (
        "<minimax:tool_call>",
        CallSyntax(
            "<minimax:tool_call>",
            "</minimax:tool_call>",
            "tags",
            call=_INVOKE.format(""),
            argument=_INVOKE_PARAMETER.format(""),
        ),
    ),
    (
        f"{_DSML}invoke",
        CallSyntax(
            f"<{_DSML}function_calls>",
            f"</{_DSML}function_calls>",
            "tags",
            call=_INVOKE.format(_DSML),
            argument=_INVOKE_PARAMETER.format(_DSML),
        ),
    ),
    (
        "<seed:tool_call>",
        CallSyntax("<seed:tool_call>", "</seed:tool_call>", "tags", call=_FUNCTION, argument=_PARAMETER),
    ),
    ("<|tool_call>call:", GEMMA),
    ("<function=", QWEN_CODER),
    (
        "<arg_key>",
        CallSyntax(
            "<tool_call>",
            "</tool_call>",
            "tags",
            call=r"\A\s*(?P<name>[^\s<]+)(?P<body>.*)",
            argument=r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)(?:</arg_value>|\Z)",
        ),
    ),
    ("<|tool_calls_section_begin|>", KIMI),
    ("<｜tool▁calls▁begin｜>", DEEPSEEK),
    ("[TOOL_CALLS]", MISTRAL),
    ("<|START_ACTION|>", CallSyntax("<|START_ACTION|>", "<|END_ACTION|>")),
    ("<|tool_call|>", CallSyntax("<|tool_call|>", "<|/tool_call|>")),
    ("<TOOLCALL>", CallSyntax("<TOOLCALL>", "</TOOLCALL>")),
    ("<tool_call>", HERMES),
    ("<|python_tag|>", CallSyntax("<|python_tag|>", skip=("<|python_tag|>",))),
)
_SWITCHES = ("enable_thinking", "thinking", "reasoning_effort", "thinking_budget")


def detect(template: str) -> ChatFormat:
    """The format that a chat template's source belongs to; one that knows nothing for an empty source."""
    knows_tools = _has_word(template, "tools")
    is_harmony = "<|channel|>" in template and "<|message|>" in template
    reasoning = next((marks for marks in _REASONING if marks.open in template), None)
    if reasoning is None and ("<think>" in template or "</think>" in template):
        reasoning = THINK
    calls = tuple(syntax for mark, syntax in _CALLS if mark in template)[:1]
    # Llama 3 is asked by its template to answer with nothing but a JSON object.
    has_bare_calls = "<|start_header_id|>" in template and not any(c.open == "<tool_call>" for c in calls)
    if not knows_tools:
        calls = (*(syntax for syntax in calls if syntax.open != HERMES.open), HERMES)  # what `rendering` asks for then
        has_bare_calls = True
    return ChatFormat(
        reasoning=None if is_harmony else reasoning,
        calls=() if is_harmony else calls,
        has_bare_calls=has_bare_calls and not is_harmony,
        is_harmony=is_harmony,
        knows_tools=knows_tools or is_harmony,
        switches=frozenset(name for name in _SWITCHES if _has_word(template, name)),
        wants_null_content=bool(re.search(r"""content['"]?\]? is none""", template)),
        wants_short_ids="length 9" in template or "length >= 9" in template,
        knows_developer=_has_word(template, "developer"),
        knows_system=not re.search("System role not supported|Only user and assistant roles are supported!", template),
    )


def _has_word(template: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", template) is not None
