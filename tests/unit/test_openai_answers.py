"""Results as OpenAI's answers, whole and in chunks; and the joined chunks are the whole."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from packtrain.broker.chat import CallDelta, FunctionCall, ToolCall
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.outcome import Receipt, Usage
from packtrain.broker.pieces import Logprob, PromptLogprob, TokenLogprob, piece_fields
from packtrain.client.openai import Stamp, StreamForm, parse_call
from packtrain.client.openai.chat_form import ChatForm
from packtrain.client.openai.completion_form import CompletionForm
from packtrain.client.openai.embedding_form import EmbeddingForm
from packtrain.client.openai.models import model_list, model_object
from packtrain.client.result import AnswerDelta, Result

pytestmark = pytest.mark.unit

STAMP = Stamp("abc", 1_700_000_000, "tiny")
RECEIPT = Receipt(
    model_sha256="0" * 64,
    numerics="fast",
    recipe="fast",
    numerics_class="c0ffee",
    library="scripted",
    features="",
    flags="",
    threads=1,
    seed=7,
    prompt_sha256="0" * 64,
    output_sha256="0" * 64,
)
CALL = ToolCall(id="call_1", function=FunctionCall(name="weather", arguments='{"city":"Oslo"}'))
PIECES = [
    CallDelta(0, id="call_1", name="weather"),
    CallDelta(0, arguments='{"city":'),
    CallDelta(0, arguments='"Oslo"}'),
]


def result(text: str = "Hello", **fields: Any) -> Result:
    usage = Usage(prompt_tokens=5, completion_tokens=2, reused_tokens=4)
    return Result(**{"job_id": "j", "text": text, "finish_reason": "stop", "usage": usage, "seed": 7, **fields})


def logprob(text: str, value: float, *top: str) -> TokenLogprob:
    likeliest = tuple(Logprob(token=i, text=t, logprob=value - i) for i, t in enumerate(top))
    return TokenLogprob(token=1, text=text, logprob=value, top=likeliest)


def choice(chunk: dict[str, Any]) -> dict[str, Any]:
    (found,) = chunk["choices"]
    assert isinstance(found, dict)
    return found


def stream(form: StreamForm, deltas: list[AnswerDelta], end: Result) -> list[dict[str, Any]]:
    chunks = form.opening(STAMP, 0)
    for delta in deltas:
        chunks += form.piece(STAMP, 0, delta)
    return chunks + form.closing(STAMP, 0, end)


# --- chats ---------------------------------------------------------------------------------------------------------


def test_a_whole_chat() -> None:
    body = ChatForm().body(STAMP, [result(receipt=RECEIPT)], extras=False)

    assert body == {
        "id": "chatcmpl-abc",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
        "system_fingerprint": "c0ffee",
    }


def test_what_packtrain_knows_beyond_openai_stands_apart() -> None:
    body = ChatForm().body(STAMP, [result(node="n1", instance="tiny-1")])

    (facts,) = body["packtrain"]["jobs"]
    assert (facts["id"], facts["seed"], facts["node"], facts["instance"]) == ("j", 7, "n1", "tiny-1")
    json.dumps(body)


def test_a_prompt_counts_once_however_many_choices_it_has() -> None:
    used = ChatForm(3).used([result()] * 3)

    assert (used["prompt_tokens"], used["completion_tokens"], used["total_tokens"]) == (5, 6, 11)
    assert CompletionForm(1).used([result()] * 3)["prompt_tokens"] == 15


def test_tool_calls_have_text_arguments_and_no_content_beside_them() -> None:
    body = ChatForm().body(STAMP, [result("", tool_calls=(CALL,), finish_reason="tool_calls")])

    message = choice(body)["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    ]
    assert choice(body)["finish_reason"] == "tool_calls"


def test_an_answer_without_text_is_an_empty_one() -> None:
    assert choice(ChatForm().body(STAMP, [result("")]))["message"]["content"] == ""


def test_a_stream_of_a_chat() -> None:
    deltas = [AnswerDelta(reasoning="hm"), AnswerDelta("Hel"), AnswerDelta(), AnswerDelta("lo")]
    chunks = stream(ChatForm(), deltas, result(receipt=RECEIPT))

    assert [choice(chunk)["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [choice(chunk)["finish_reason"] for chunk in chunks] == [None, None, None, None, "stop"]
    heads = {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks}
    assert heads == {("chatcmpl-abc", "chat.completion.chunk", 1_700_000_000, "tiny")}
    assert all("usage" not in chunk for chunk in chunks)


def test_the_chunk_of_usage_has_no_choices() -> None:
    chunk = ChatForm().usage(STAMP, [result()])

    assert chunk["choices"] == []
    assert chunk["usage"]["total_tokens"] == 7


def test_tool_calls_stream_with_their_names_once() -> None:
    form = ChatForm()
    chunks = [piece for delta in PIECES for piece in form.piece(STAMP, 0, AnswerDelta(calls=(delta,)))]

    assert [choice(chunk)["delta"]["tool_calls"] for chunk in chunks] == [
        [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"city":'}}],
        [{"index": 0, "function": {"arguments": '"Oslo"}'}}],
    ]


def test_who_asked_with_functions_is_answered_with_a_function_call() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "functions": [{"name": "weather"}]}
    form = parse_call("/v1/chat/completions", body).form
    assert isinstance(form, ChatForm)
    end = result("", tool_calls=(CALL,), finish_reason="tool_calls")
    whole = choice(form.body(STAMP, [end]))
    chunks = stream(form, [AnswerDelta(calls=(piece,)) for piece in PIECES], end)

    assert whole["message"]["function_call"] == {"name": "weather", "arguments": '{"city":"Oslo"}'}
    assert "tool_calls" not in whole["message"]
    assert whole["finish_reason"] == choice(chunks[-1])["finish_reason"] == "function_call"
    pieces = [choice(chunk)["delta"]["function_call"] for chunk in chunks[1:-1]]
    assert [piece.get("name") for piece in pieces] == ["weather", None, None]
    assert "".join(piece["arguments"] for piece in pieces) == '{"city":"Oslo"}'


def test_logprobs_of_a_chat() -> None:
    body = ChatForm(wants_logprobs=True).body(STAMP, [result(logprobs=(logprob("é", -0.5, "é", "e"),))])

    assert choice(body)["logprobs"]["content"] == [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [0xC3, 0xA9],
            "top_logprobs": [
                {"token": "é", "logprob": -0.5, "bytes": [0xC3, 0xA9]},
                {"token": "e", "logprob": -1.5, "bytes": [0x65]},
            ],
        }
    ]


def test_a_character_split_between_tokens_keeps_its_bytes_and_counts_once() -> None:
    halves = [
        TokenLogprob(**piece_fields(number, data), logprob=-1.0) for number, data in enumerate([b"\xc3", b"\xa9"])
    ]
    entries = (*halves, logprob("!", -1))

    told = choice(ChatForm(wants_logprobs=True).body(STAMP, [result(logprobs=entries)]))["logprobs"]["content"]
    offsets = choice(CompletionForm().body(STAMP, [result(logprobs=entries)]))["logprobs"]["text_offset"]

    assert bytes(byte for one in told for byte in one["bytes"]).decode() == "é!"
    assert offsets == [0, 1, 1]


def test_logprobs_stream_with_the_text_of_their_tokens() -> None:
    """Text is held back for stop strings: tokens without text yet wait for it, and none is lost or doubled."""
    first, second, third = logprob("Hel", -1), logprob("lo", -2), logprob("!", -3)
    deltas = [
        AnswerDelta("", logprobs=(first,)),
        AnswerDelta("Hello", logprobs=(second,)),
        AnswerDelta("", logprobs=(third,)),
    ]
    chunks = stream(ChatForm(wants_logprobs=True), deltas, result())

    found = [[one["token"] for one in (choice(chunk)["logprobs"] or {"content": []})["content"]] for chunk in chunks]
    assert found == [[], ["Hel", "lo"], ["!"]]


def test_logprobs_that_nobody_asked_for_are_not_shown() -> None:
    chunks = stream(ChatForm(), [AnswerDelta("Hi", logprobs=(logprob("Hi", -1),))], result())

    assert all(choice(chunk)["logprobs"] is None for chunk in chunks)


# --- completions ---------------------------------------------------------------------------------------------------


def test_a_whole_completion_numbers_choices_over_all_prompts() -> None:
    body = CompletionForm(2).body(STAMP, [result(text) for text in "abcd"], extras=False)

    assert (body["id"], body["object"]) == ("cmpl-abc", "text_completion")
    assert [(one["index"], one["text"], one["finish_reason"]) for one in body["choices"]] == [
        (0, "a", "stop"),
        (1, "b", "stop"),
        (2, "c", "stop"),
        (3, "d", "stop"),
    ]
    assert body["usage"]["prompt_tokens"] == 10


def test_logprobs_of_a_completion_are_four_lists() -> None:
    body = CompletionForm().body(STAMP, [result(logprobs=(logprob("He", -1, "He", "Ho"), logprob("llo", -2, "llo")))])

    assert choice(body)["logprobs"] == {
        "tokens": ["He", "llo"],
        "token_logprobs": [-1, -2],
        "top_logprobs": [{"He": -1, "Ho": -2}, {"llo": -2}],
        "text_offset": [0, 2],
    }


def test_an_echo_has_the_logprobs_of_the_prompt_before_those_of_the_answer() -> None:
    prompt = (PromptLogprob(token=1, text="Hi", logprob=None), PromptLogprob(token=2, text=" ho", logprob=-3.0))
    shown = choice(
        CompletionForm(echo=True).body(STAMP, [result("Hi ho!", prompt_logprobs=prompt, logprobs=(logprob("!", -1),))])
    )["logprobs"]

    assert shown["tokens"] == ["Hi", " ho", "!"]
    assert shown["token_logprobs"] == [None, -3.0, -1]
    assert shown["top_logprobs"][0] is None
    assert shown["text_offset"] == [0, 2, 5]


def test_a_stream_of_a_completion() -> None:
    deltas = [AnswerDelta("Hel", logprobs=(logprob("Hel", -1),)), AnswerDelta("lo", logprobs=(logprob("lo", -2),))]
    chunks = stream(CompletionForm(), deltas, result())

    assert [choice(chunk)["text"] for chunk in chunks] == ["Hel", "lo", ""]
    assert [choice(chunk)["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [choice(chunk)["logprobs"]["text_offset"] for chunk in chunks[:2]] == [[0], [3]]


# --- embeddings and models -----------------------------------------------------------------------------------------


def test_base64_is_32_bit_little_endian() -> None:
    vector = (0.25, -1.0, 3.4028234663852886e38)
    body = EmbeddingForm("base64").body(STAMP, [result("", embedding=vector)], extras=False)

    (item,) = body["data"]
    assert struct.unpack("<3f", base64.b64decode(item["embedding"])) == vector
    assert (body["object"], item["object"], item["index"]) == ("list", "embedding", 0)


def test_floats_are_a_list_in_the_order_of_the_texts() -> None:
    body = EmbeddingForm("float").body(STAMP, [result("", embedding=(1.0,)), result("", embedding=(0.5,))])

    assert [(item["index"], item["embedding"]) for item in body["data"]] == [(0, [1.0]), (1, [0.5])]
    assert body["usage"] == {"prompt_tokens": 10, "total_tokens": 10}


def test_models_have_openais_four_fields_and_their_context() -> None:
    infos = [ModelInfo(id="tiny", n_ctx=512, required_bytes=1), ModelInfo(id="alias", alias_of="tiny")]
    listed = model_list(infos, 5)

    assert listed["object"] == "list"
    alias, tiny = listed["data"]
    assert {name: tiny[name] for name in ("id", "object", "created", "owned_by")} == {
        "id": "tiny",
        "object": "model",
        "created": 5,
        "owned_by": "packtrain",
    }
    assert tiny["context_length"] == tiny["max_model_len"] == tiny["meta"]["n_ctx"] == 512
    far = model_object(ModelInfo(id="far", n_ctx=0, remote="api.example.com big"), {}, 5)
    assert far["context_length"] is None
    assert (alias["context_length"], alias["alias_of"]) == (512, "tiny")
