"""Ollama's API: requests as jobs, results as objects and lines, models as it lists them."""

from __future__ import annotations

from typing import Any

import pytest

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.chat import CallDelta, FunctionCall, ToolCall
from packtrain.broker.errors import InvalidParameter, JobFailed, UnknownModel
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.model_info import BufferMemory, ModelInfo, ModelMemory
from packtrain.broker.outcome import Timings, Usage
from packtrain.broker.pieces import TokenLogprob
from packtrain.broker.states import InstanceState
from packtrain.client.dialects.ollama import form, models
from packtrain.client.dialects.ollama.bodies import ChatBody, EmbedBody, EmbeddingsBody, GenerateBody
from packtrain.client.dialects.ollama.calls import chat_call, embed_call, generate_call, load_call
from packtrain.client.openai import Stamp, fault_of
from packtrain.client.openai.calls import checked
from packtrain.client.result import AnswerDelta, Result

pytestmark = pytest.mark.unit

STAMP = Stamp("7f", 1_700_000_000, "smollm2")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def chat(*messages: dict[str, Any], **fields: Any) -> JobSpec:
    turns = list(messages) or [{"role": "user", "content": "Hi"}]
    return chat_call(checked(ChatBody, {"model": "smollm2", "messages": turns, **fields})).specs[0]


def generate(**fields: Any) -> JobSpec:
    return generate_call(checked(GenerateBody, {"model": "smollm2", "prompt": "Hi", **fields})).specs[0]


def ended(text: str = "", reason: Any = "stop", **fields: Any) -> Result:
    timings = Timings(queue_ms=500, first_token_ms=100, run_ms=1600)
    return Result("7f", text, reason, Usage(prompt_tokens=10, completion_tokens=4), timings, **fields)


def test_a_chat_streams_unless_it_says_no() -> None:
    assert [chat(**fields).stream for fields in ({}, {"stream": None}, {"stream": False})] == [True, True, False]


def test_options_are_sampling() -> None:
    options = {"num_predict": 9, "temperature": 0, "top_k": 5, "seed": 7, "stop": ["#"], "repeat_penalty": 1.1}
    params = chat(options={**options, "num_ctx": 2048, "mirostat": 1}).params

    assert (params.max_tokens, params.temperature, params.top_k, params.seed) == (9, 0, 5, 7)
    assert (params.stop, params.repeat_penalty) == (("#",), 1.1)


@pytest.mark.parametrize("limit", [-1, -2, None])
def test_no_bound_is_what_the_context_holds(limit: int | None) -> None:
    assert chat(options={"num_predict": limit}).params.max_tokens is None


@pytest.mark.parametrize(("think", "expected"), [(None, "auto"), (True, "on"), (False, "off"), ("high", "high")])
def test_thinking_is_reasoning(think: bool | str | None, expected: str) -> None:
    assert chat(think=think).reasoning == expected


def test_a_form_is_json_or_a_schema() -> None:
    forms = [chat(format=form).params.response_format.type for form in ("", "json", {"type": "object"})]

    assert forms == ["text", "json_object", "json_schema"]
    with pytest.raises(InvalidParameter, match="format"):
        chat(format="xml")


def test_the_tag_latest_is_no_part_of_a_name() -> None:
    assert chat(model="smollm2:latest").model == "smollm2"
    with pytest.raises(UnknownModel):
        chat(model="smollm2:135m")


def test_calls_get_ids_and_their_answers_find_them() -> None:
    asked = {
        "role": "assistant",
        "content": "",
        "thinking": "Ask.",
        "tool_calls": [
            {"function": {"name": "weather", "arguments": {"city": "Köln"}}},
            {"function": {"name": "time", "arguments": {}}},
        ],
    }
    answers = [
        {"role": "tool", "content": "noon", "tool_name": "time"},
        {"role": "tool", "content": "sun", "tool_name": "weather"},
    ]
    turns = chat({"role": "user", "content": "?"}, asked, *answers, tools=[TOOL]).messages

    assert turns[1].reasoning_content == "Ask."
    assert [call.function.arguments for call in turns[1].tool_calls] == ['{"city": "Köln"}', "{}"]
    weather, time = (call.id for call in turns[1].tool_calls)
    assert [(turn.tool_call_id, turn.content) for turn in turns[2:]] == [(time, "noon"), (weather, "sun")]


def test_an_answer_to_no_call_is_a_turn_all_the_same() -> None:
    turns = chat({"role": "user", "content": "?"}, {"role": "tool", "content": "noon"}).messages

    assert turns[1].tool_call_id == "call"


@pytest.mark.parametrize("image", ["aGk=", "iVBORw0K", "data:image/png;base64,aGk="])
def test_an_image_is_refused_as_one(image: str) -> None:
    with pytest.raises(InvalidParameter, match="image"):
        chat({"role": "user", "content": "?", "images": [image]})
    with pytest.raises(InvalidParameter, match="image"):
        generate(images=[image])
    with pytest.raises(InvalidParameter, match="images"):
        generate(images=[image], raw=True)


def test_a_generated_text_is_a_chat_of_one_turn() -> None:
    spec = generate(system="Be kind.")

    assert [(turn.role, turn.content) for turn in spec.messages] == [("system", "Be kind."), ("user", "Hi")]


def test_raw_text_and_text_with_a_gap_go_on_without_a_template() -> None:
    raw, gap = generate(raw=True, system="Be kind."), generate(suffix="there")

    assert [(spec.kind, spec.prompt, spec.suffix) for spec in (raw, gap)] == [
        ("complete", "Hi", ""),
        ("complete", "Hi", "there"),
    ]


def test_texts_are_embedded_by_the_new_and_the_old_request() -> None:
    new = embed_call(checked(EmbedBody, {"model": "v:latest", "input": ["a", "b"], "dimensions": 4}))
    old = embed_call(checked(EmbeddingsBody, {"model": "v", "prompt": "a"}))

    assert [(spec.model, spec.prompt, spec.dimensions) for spec in new.specs] == [("v", "a", 4), ("v", "b", 4)]
    assert [(spec.kind, spec.prompt) for spec in old.specs] == [("embed", "a")]


def test_a_request_without_a_prompt_loads_by_a_job_that_counts() -> None:
    call = load_call(checked(ChatBody, {"model": "smollm2"}))

    assert ([spec.kind for spec in call.specs], call.stream) == (["count"], False)


@pytest.mark.parametrize(
    ("keep_alive", "unloads"), [(0, True), ("0", True), ("0s", True), (-1, False), ("5m", False), (None, False)]
)
def test_a_model_that_is_not_kept_is_unloaded(keep_alive: Any, unloads: bool) -> None:
    assert checked(ChatBody, {"model": "smollm2", "keep_alive": keep_alive}).unloads is unloads


def test_an_answer_has_figures_in_nanoseconds() -> None:
    said = form.AnswerForm("smollm2:latest", "chat", STAMP).whole(ended("Hello", reasoning="Hm."))

    assert said["message"] == {"role": "assistant", "content": "Hello", "thinking": "Hm."}
    assert (said["model"], said["created_at"]) == ("smollm2:latest", "2023-11-14T22:13:20.000000Z")
    assert (said["done"], said["done_reason"]) == (True, "stop")
    assert (said["load_duration"], said["prompt_eval_duration"]) == (500_000_000, 100_000_000)
    assert (said["eval_duration"], said["total_duration"]) == (1_500_000_000, 2_100_000_000)
    assert (said["prompt_eval_count"], said["eval_count"]) == (10, 4)


def test_arguments_of_a_call_are_an_object() -> None:
    call = ToolCall(id="c1", function=FunctionCall(name="weather", arguments='{"city": "Rome"}'))
    said = form.AnswerForm("m", "chat", STAMP).whole(ended("", "tool_calls", tool_calls=(call,)))

    function = {"index": 0, "name": "weather", "arguments": {"city": "Rome"}}
    assert said["message"]["tool_calls"] == [{"id": "c1", "function": function}]
    assert said["done_reason"] == "stop"


def test_a_stream_gives_text_as_it_comes_and_calls_when_they_are_whole() -> None:
    answer = form.AnswerForm("m", "chat", STAMP)
    lines = [
        *answer.piece(AnswerDelta(reasoning="Hm.")),
        *answer.piece(AnswerDelta("Yes", calls=(CallDelta(0, '{"a"', "c1", "f"),))),
        *answer.piece(AnswerDelta(calls=(CallDelta(0, ":1}"), CallDelta(1, "", "c2", "g")))),
        *answer.closing(ended("Yes", "tool_calls")),
    ]

    messages = [{name: value for name, value in line["message"].items() if name != "role"} for line in lines]
    assert messages == [
        {"content": "", "thinking": "Hm."},
        {"content": "Yes"},
        {"content": "", "tool_calls": [{"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}]},
        {"content": "", "tool_calls": [{"id": "c2", "function": {"index": 1, "name": "g", "arguments": {}}}]},
        {"content": ""},
    ]
    assert [line["done"] for line in lines] == [False, False, False, False, True]


def test_a_generated_text_streams_by_itself() -> None:
    answer = form.AnswerForm("m", "generate", STAMP)
    lines = [*answer.piece(AnswerDelta("a")), *answer.closing(ended("a", "length"))]

    assert [line["response"] for line in lines] == ["a", ""]
    assert lines[-1]["done_reason"] == "length"


def test_logprobs_come_with_the_text_they_are_of() -> None:
    assert chat(logprobs=True, top_logprobs=2).params.logprobs == 2
    assert generate(raw=True, logprobs=True).params.logprobs == 0
    answer = form.AnswerForm("m", "generate", STAMP)
    entry = TokenLogprob(token=1, text="a", logprob=-0.5)
    lines = [*answer.piece(AnswerDelta(logprobs=(entry,))), *answer.piece(AnswerDelta("a"))]

    assert [[token["token"] for token in line["logprobs"]] for line in lines] == [["a"]]


def test_vectors_come_with_the_tokens_of_all() -> None:
    said = form.embeddings("v", [ended(embedding=(1.0, 0.0)), ended(embedding=(0.0, 1.0))])

    assert (said["embeddings"], said["prompt_eval_count"]) == ([[1.0, 0.0], [0.0, 1.0]], 20)


def test_a_failure_is_one_text() -> None:
    assert form.error(fault_of(JobFailed("it broke; try another"))) == {"error": "it broke; try another"}


INFO = ModelInfo(
    id="smollm2",
    file="smollm2.gguf",
    architecture="llama",
    quantization="Q8_0",
    parameters=134_515_008,
    weights_bytes=1000,
    n_ctx=4096,
    memory=ModelMemory(buffers=(BufferMemory(buffer="CUDA0", on_host=False, weights=30, cache=5, compute=1),)),
)
INFOS = {"smollm2": INFO, "fast": ModelInfo(id="fast", alias_of="smollm2")}


def test_models_are_listed_with_their_tag() -> None:
    listed = models.tags(INFOS, 0)["models"]

    assert [entry["name"] for entry in listed] == ["fast:latest", "smollm2:latest"]
    assert listed[0]["details"] == listed[1]["details"]
    assert listed[1]["details"].items() >= {"parameter_size": "134.52M", "quantization_level": "Q8_0"}.items()
    assert len(listed[1]["digest"]) == 64


def test_a_model_is_shown_with_the_context_that_requests_may_use() -> None:
    said = models.shown(INFOS["fast"], INFOS, 0)

    assert said["model_info"]["llama.context_length"] == 4096
    assert said["capabilities"] == ["completion", "tools"]
    vectors = ModelInfo(id="v", architecture="bert", embeds_only=True)
    assert models.shown(vectors, {"v": vectors}, 0)["capabilities"] == ["embedding"]


def test_what_runs_is_listed_with_its_memory_and_its_end() -> None:
    ready = InstanceBeat(
        instance="i",
        model="smollm2",
        node="n",
        state=InstanceState.READY,
        resident_bytes=70,
        last_used_ms=1_700_000_000_000,
    )
    loading = ready.model_copy(update={"state": InstanceState.LOADING})
    (entry,) = models.running(INFOS, [ready, loading])["models"]

    assert (entry["name"], entry["size"], entry["size_vram"]) == ("smollm2:latest", 70, 36)
    assert entry["expires_at"] == "2023-11-14T22:18:20.000000Z"  # five minutes after its last job


def test_a_model_that_stays_has_an_end_far_away() -> None:
    kept = INFO.model_copy(update={"keep_alive_s": -1})
    ready = InstanceBeat(instance="i", model="smollm2", node="n", state=InstanceState.READY, ready_ms=1_700_000_000_000)

    assert models.running({"smollm2": kept}, [ready])["models"][0]["expires_at"] > "2100"
