"""From a request to the prompt, by the model's own template, whatever that template knows and wants.

Templates differ: in how they want a call's arguments (an object, or its text), whether they know tools or developer
turns at all, and by which variable their reasoning is switched. A template that knows no tools gets them as a text in
its system turn, and calls and results as plain turns.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packtrain.broker.chat import Message, Tool
from packtrain.broker.errors import InvalidParameter
from packtrain.broker.job_spec import MAX_PROMPT_CHARS, JobSpec
from packtrain.broker.media import split_at
from packtrain.broker.structured import FreeText
from packtrain.workers.chat.families import ChatFormat
from packtrain.workers.chat.forced import is_forced
from packtrain.workers.chat.masking import Part, SpecialTexts, placeholder, unmask

#: Characters that a template may make of a chat.
MAX_RENDERED_CHARS = 4 * MAX_PROMPT_CHARS

#: Renders the template with these variables. Raises `InvalidRequest`.
Template = Callable[[Mapping[str, Any]], str]

_HARMONY_ANSWER = "<|channel|>final<|message|>"
_TOOLS_TEXT = """\
You may call functions. Each line is one of them, as JSON:
{tools}

To call functions, write one line like this for each call, and nothing after the last one:
<tool_call>{{"name": "function name", "arguments": {{"argument name": "value"}}}}</tool_call>

Results come back between <tool_response> and </tool_response>. Answer without a call when none is needed."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, and where in the format it ends."""

    parts: tuple[Part, ...]
    in_reasoning: bool = False
    in_answer: bool = False  # harmony: within the message of the final channel


def render(spec: JobSpec, form: ChatFormat, template: Template, special: SpecialTexts) -> Rendered:
    """The prompt for a chat.

    Raises:
        InvalidRequest: The template refuses it, or takes more than it may.
    """
    tools = tools_of(spec)
    found: list[Part] = []
    is_plain = not form.knows_tools
    messages = _with_plain_tools(spec.messages, tools, form) if is_plain else spec.messages
    turns = [
        _turn(message, form, _names(spec.messages), lambda text: special.mask(text, found), found)
        for message in messages
    ]
    variables = {
        **spec.template_args,
        **_switches(spec, form),
        "tools": None if is_plain or not tools else [_tool(tool) for tool in tools],
    }
    text = _rendered(template, variables, turns)
    text, in_answer = _closed(text, spec, form, bool(tools))
    in_reasoning = form.reasoning is not None and text.rstrip().endswith(form.reasoning.open)
    return Rendered(unmask(text, found), in_reasoning, in_answer)


def tools_of(spec: JobSpec) -> tuple[Tool, ...]:
    """Tools that may be called in this answer."""
    return () if spec.tool_choice == "none" else spec.tools


def short_id(text: str) -> str:
    """Nine letters and digits, which is what the strictest templates take as the id of a call; always the same."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:9].lower()


def _rendered(template: Template, variables: Mapping[str, Any], turns: list[dict[str, Any]]) -> str:
    arguments = [call["function"]["arguments"] for turn in turns for call in turn.get("tool_calls", ())]
    if not arguments:
        return template({**variables, "messages": turns})
    try:
        text = template({**variables, "messages": turns})
    except InvalidParameter:
        text = None  # such as one that adds the arguments to a text
    # One that writes them as they are shows Python's notation of a dict.
    if text is None or any(isinstance(a, dict) and a and str(a) in text for a in arguments):
        return template({**variables, "messages": [_with_text_arguments(turn) for turn in turns]})
    return text


def _turn(
    message: Message, form: ChatFormat, names: Mapping[str, str], mask: Callable[[str], str], found: list[Part]
) -> dict[str, Any]:
    role = "system" if message.role == "developer" and not form.knows_developer else message.role
    content = message.content if role == "assistant" else mask(message.content)
    if message.media:
        content = "".join(
            mask(piece) if isinstance(piece, str) else placeholder(Part("", media=piece.sha256), found)
            for piece in split_at(message.content, message.media)
        )
    turn: dict[str, Any] = {"role": role, "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": _fitting_id(call.id, form),
                "type": "function",
                "function": {"name": call.function.name, "arguments": _as_object(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
        if not content and form.wants_null_content:
            turn["content"] = None
    if message.tool_call_id is not None:
        turn["tool_call_id"] = _fitting_id(message.tool_call_id, form)
    if name := message.name or names.get(message.tool_call_id or ""):
        turn["name"] = mask(name)
    if message.reasoning_content:
        turn["reasoning_content"] = message.reasoning_content
        if form.is_harmony and not content:  # its template refuses both in one turn
            turn["thinking"] = message.reasoning_content
    return turn


def _names(messages: Sequence[Message]) -> dict[str, str]:
    return {call.id: call.function.name for message in messages for call in message.tool_calls}


def _fitting_id(call_id: str, form: ChatFormat) -> str:
    if not form.wants_short_ids or re.fullmatch("[a-zA-Z0-9]{9}", call_id):
        return call_id
    return short_id(call_id)


def _as_object(arguments: str) -> Any:
    """Arguments as most templates want them; as they are where a model wrote no JSON object."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _with_text_arguments(turn: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in turn:
        return turn
    calls = []
    for call in turn["tool_calls"]:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": text}})
    return {**turn, "tool_calls": calls}


def _tool(tool: Tool) -> dict[str, Any]:
    function = tool.function
    parameters = function.parameters or {"type": "object", "properties": {}}
    described = {"name": function.name, "description": function.description, "parameters": parameters}
    return {"type": "function", "function": described}


def _with_plain_tools(messages: Sequence[Message], tools: Sequence[Tool], form: ChatFormat) -> list[Message]:
    """The chat in turns that every template knows, its tools described in the first."""
    turns = [_plain(message) for message in messages]
    if not tools:
        return turns
    lines = "\n".join(json.dumps(_tool(tool)["function"], ensure_ascii=False) for tool in tools)
    text = _TOOLS_TEXT.format(tools=lines)
    host = "system" if form.knows_system else "user"
    first = turns[0]
    if first.role == host or (host == "system" and first.role == "developer"):
        return [first.model_copy(update={"content": f"{first.content}\n\n{text}"}), *turns[1:]]
    return [Message(role="system" if host == "system" else "user", content=text), *turns]


def _plain(message: Message) -> Message:
    if message.role == "tool":
        begin = "<tool_response>\n"
        media = tuple(ref.model_copy(update={"at": ref.at + len(begin)}) for ref in message.media)
        return Message(role="user", content=f"{begin}{message.content}\n</tool_response>", media=media)
    if not message.tool_calls:
        return message
    calls = [
        json.dumps({"name": c.function.name, "arguments": _as_object(c.function.arguments)}, ensure_ascii=False)
        for c in message.tool_calls
    ]
    lines = [message.content, *(f"<tool_call>{call}</tool_call>" for call in calls)]
    return Message(role="assistant", content="\n".join(line for line in lines if line))


def _switches(spec: JobSpec, form: ChatFormat) -> dict[str, Any]:
    """The template's variables for reasoning, where it has any."""
    if _is_off(spec):
        values: dict[str, Any] = {"enable_thinking": False, "thinking": False, "thinking_budget": 0}
        values["reasoning_effort"] = "low"
    elif spec.reasoning == "auto":
        return {}
    else:
        values = {"enable_thinking": True, "thinking": True}
        if spec.reasoning != "on":
            values["reasoning_effort"] = spec.reasoning
    return {name: value for name, value in values.items() if name in form.switches}


def _is_off(spec: JobSpec) -> bool:
    # A call that is forced, or an answer in a given form, begins at once; reasoning before it would not fit the form.
    is_free = isinstance(spec.params.response_format, FreeText)
    return spec.reasoning == "off" or is_forced(spec.tool_choice) or not is_free


def _closed(text: str, spec: JobSpec, form: ChatFormat, has_tools: bool) -> tuple[str, bool]:
    """The prompt with its reasoning ended where it is switched off and the template has no switch for that."""
    if not _is_off(spec):
        return text, False
    if form.is_harmony:
        # A call in harmony's own notation needs a channel of the model's choice.
        is_closed = not has_tools or is_forced(spec.tool_choice)
        return (text + _HARMONY_ANSWER, True) if is_closed else (text, False)
    if form.reasoning is None:
        return text, False
    marks = form.reasoning
    if text.rstrip().endswith(marks.open):
        return f"{text.rstrip()}\n\n{marks.close}\n\n", False
    if form.switches - {"reasoning_effort"} or text.rstrip().endswith(marks.close):
        return text, False
    return f"{text}{marks.open}\n\n{marks.close}\n\n", False
