"""The turns and tools of a chat request in the shape of a job's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packtrain.broker.chat import Function, Message
from packtrain.broker.errors import InvalidParameter
from packtrain.client.openai.bodies import ChatBody

#: OpenAI's steps of effort. A model takes part as far as its template can.
_EFFORTS = {"none": "off", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}


def chat_fields(body: ChatBody) -> dict[str, Any]:
    """Messages, tools and reasoning as fields of a `JobSpec`.

    Raises:
        InvalidParameter
    """
    fields: dict[str, Any] = {"messages": [_turn(turn) for turn in body.messages]}
    tools = body.tools if body.tools is not None else _from_functions(body.functions)
    choice = body.tool_choice if body.tool_choice is not None else _from_function_call(body.function_call)
    if tools:
        fields["tools"] = [_tool(tool, index) for index, tool in enumerate(tools)]
        if choice is not None:
            fields["tool_choice"] = choice
        if body.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = body.parallel_tool_calls
    elif choice not in (None, "auto", "none"):
        raise InvalidParameter("tool_choice asks for a call, but there are no tools; send them", field="tool_choice")
    return fields | _reasoning(body)


def _reasoning(body: ChatBody) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    variables = dict(body.chat_template_kwargs or {})
    thinks = variables.pop("enable_thinking", None)  # Qwen's name for it, which vLLM's clients send
    if isinstance(thinks, bool):
        fields["reasoning"] = "on" if thinks else "off"
    if body.reasoning_effort is not None:
        if body.reasoning_effort not in _EFFORTS:
            raise InvalidParameter(
                f"reasoning_effort = {body.reasoning_effort!r} is none of {', '.join(_EFFORTS)}",
                field="reasoning_effort",
            )
        fields["reasoning"] = _EFFORTS[body.reasoning_effort]
    return fields | ({"template_args": variables} if variables else {})


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn with what we know of it: clients send answers of any server back, with fields of its own."""
    known = {name: value for name, value in turn.items() if name in Message.model_fields}
    if known.get("role") == "function":  # OpenAI's old name, whose calls had no ids
        known |= {"role": "tool", "tool_call_id": turn.get("tool_call_id") or turn.get("name") or "function"}
    if known.get("role") == "assistant" and isinstance(call := turn.get("function_call"), Mapping):
        # The old name of a call had no id either; the turn with its result names the function.
        known.setdefault("tool_calls", [{"id": call.get("name") or "function", "function": dict(call)}])
    if known.get("role") == "assistant" and "reasoning_content" not in known and isinstance(turn.get("reasoning"), str):
        known["reasoning_content"] = turn["reasoning"]
    if known.get("role") != "assistant":
        known.pop("tool_calls", None)
        known.pop("reasoning_content", None)
    if isinstance(content := known.get("content"), Sequence) and not isinstance(content, str):
        known["content"] = [_part(part) for part in content]
    elif content is None and known.get("role") == "assistant":
        known["content"] = ""
    return known


def _part(part: Any) -> Any:
    """Every kind of text part as a plain one."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Mapping) and part.get("type") in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text")}
    if isinstance(part, Mapping) and part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    return part


def _tool(tool: Mapping[str, Any], index: int) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise InvalidParameter(
            f"tools.{index} is of type {tool.get('type')!r}; only functions can be called here, as "
            '{"type": "function", "function": {"name": ...}}',
            field=f"tools.{index}",
        )
    known = {name: value for name, value in function.items() if name in Function.model_fields and value is not None}
    return {"type": "function", "function": known}


def _from_functions(functions: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    return None if functions is None else [{"type": "function", "function": dict(each)} for each in functions]


def _from_function_call(choice: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(choice, Mapping):
        return {"type": "function", "function": dict(choice)}
    return choice
