"""The resource that a response is: what the request said or what was used instead, and items for what came.

It names every field that OpenResponses demands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from packtrain.broker.chat import NamedTool
from packtrain.broker.pieces import TokenLogprob
from packtrain.client.dialects.blocks import Block
from packtrain.client.dialects.responses.calls import Asked
from packtrain.client.dialects.responses.tools import custom_input
from packtrain.client.openai import Fault, Stamp
from packtrain.client.openai.forms import job_facts
from packtrain.client.openai.logprobs import chat_logprobs
from packtrain.client.result import Result

_ITEM_IDS = {"reasoning": "rs", "text": "msg", "call": "fc"}


class Resource:
    """What all answers to one request say.

    Args:
        logprobs: Of each block; may grow.
    """

    def __init__(self, asked: Asked, stamp: Stamp, logprobs: Mapping[int, Sequence[TokenLogprob]]) -> None:
        self._asked = asked
        self._stamp = stamp
        self._logprobs = logprobs

    def item_id(self, block: Block) -> str:
        """Its place makes it different from all others of the answer."""
        kind = "ctc" if self.is_custom(block) else _ITEM_IDS[block.kind]
        return f"{kind}_{self._stamp.id}_{block.index}"

    def is_custom(self, block: Block) -> bool:
        """True for a call of a custom tool."""
        return block.kind == "call" and self._asked.is_custom(block.name)

    def item(self, block: Block, status: str, *, is_new: bool = False) -> dict[str, Any]:
        """A block as an item; a new one without what is in it."""
        head = {"id": self.item_id(block), "status": status}
        if self.is_custom(block):
            said = "" if is_new else custom_input(block)
            return {"type": "custom_tool_call", **head, "call_id": block.call_id, "name": block.name, "input": said}
        if block.kind == "call":
            arguments = "" if is_new else block.text or "{}"
            call = {"call_id": block.call_id, "name": block.name, "arguments": arguments}
            return {"type": "function_call", **head, **call}
        parts = [] if is_new else [self.part(block, block.text)]
        if block.kind == "reasoning":
            return {"type": "reasoning", **head, "summary": [], "content": parts, "encrypted_content": None}
        return {"type": "message", **head, "role": "assistant", "content": parts}

    def part(self, block: Block, text: str) -> dict[str, Any]:
        """The one part of an item that is no call."""
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        logprobs = told(self._logprobs.get(block.index, ()) if text else ())
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def now(self, status: str) -> dict[str, Any]:
        """The response before it has ended."""
        body, spec = self._asked.body, self._asked.call.specs[0]
        params, text = spec.params, body.text or {}
        return {
            "id": f"resp_{self._stamp.id}",
            "object": "response",
            "created_at": self._stamp.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._stamp.model,
            "instructions": body.instructions,
            "output": [],
            "max_output_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "top_logprobs": body.top_logprobs or 0,
            "tools": [dict(tool) for tool in self._asked.tools],
            "tool_choice": self._choice(),
            "parallel_tool_calls": spec.parallel_tool_calls,
            "max_tool_calls": None,
            "text": {"format": {"type": "text"}, "verbosity": "medium", **text},
            "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
            "truncation": "disabled",
            "background": False,
            "store": False,
            "previous_response_id": None,
            "service_tier": "flex" if body.service_tier == "flex" else "default",
            "metadata": body.metadata or {},
            "user": body.user,
            "safety_identifier": None,
            "prompt_cache_key": None,
            "usage": None,
        }

    def ended(self, result: Result, blocks: Sequence[Block]) -> dict[str, Any]:
        """The response when its job has ended well."""
        status = status_of(result)
        items = [self.item(block, "completed") for block in blocks]
        if items and status == "incomplete":
            items[-1]["status"] = "incomplete"
        took_ms = result.timings.queue_ms + result.timings.run_ms
        return {
            **self.now(status),
            "completed_at": math.ceil(self._stamp.created + took_ms / 1000) if status == "completed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": items,
            "usage": _usage(result),
            "packtrain": job_facts(result),
        }

    def failed(self, fault: Fault, blocks: Sequence[Block]) -> dict[str, Any]:
        """The response when its job has failed."""
        items = [self.item(block, "incomplete") for block in blocks]
        error = {"code": fault.code, "message": fault.message}
        return {**self.now("failed"), "error": error, "output": items}

    def _choice(self) -> str | dict[str, Any]:
        choice = self._asked.call.specs[0].tool_choice
        if not isinstance(choice, NamedTool):
            return choice
        name = choice.function.name
        return {"type": "custom" if self._asked.is_custom(name) else "function", "name": name}


def status_of(result: Result) -> str:
    return "incomplete" if result.finish_reason == "length" else "completed"


def told(entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Logprobs as chats have them, too."""
    return list(chat_logprobs(entries)["content"])


def _usage(result: Result) -> dict[str, Any]:
    """Tokens. Those of the reasoning are among the output, and are not counted apart."""
    used = result.usage
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.reused_tokens, "cache_write_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
