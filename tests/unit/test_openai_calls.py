"""OpenAI's requests as jobs: which fields are taken, in which forms, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from packtrain.broker.errors import InvalidParameter, PromptEmpty, UnknownModel
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.structured import FreeText, Grammar, JsonObject, JsonSchema
from packtrain.client.openai import Call, parse_call

pytestmark = pytest.mark.unit

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
HI = [{"role": "user", "content": "Hi"}]
#: Everything that a generated client can send (openai-python's `*_with_all_params`) and that only OpenAI understands.
OPENAIS_OWN: dict[str, Any] = {
    "metadata": {"team": "a"},
    "store": True,
    "verbosity": "low",
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "modalities": ["text"],
    "audio": {"format": "wav", "voice": "ash"},
    "prediction": {"type": "content", "content": "x"},
    "web_search_options": {},
    "service_tier": "auto",
    "cache_prompt": True,
    "something_new": {"a": [1]},
}


def chat(**fields: Any) -> Call:
    return parse_call("/v1/chat/completions", {"model": "m", "messages": HI, **fields})


def completion(**fields: Any) -> Call:
    return parse_call("/v1/completions", {"model": "m", "prompt": "Hi", **fields})


def embedding(**fields: Any) -> Call:
    return parse_call("/v1/embeddings", {"model": "m", "input": "Hi", **fields})


def only(call: Call) -> JobSpec:
    (spec,) = call.specs
    return spec


def field_of(error: pytest.ExceptionInfo[InvalidParameter]) -> object:
    return error.value.data.get("field")


def test_a_chat_says_no_more_than_it_was_given() -> None:
    assert only(chat()) == JobSpec(model="m", messages=HI, stream=False)
    assert only(chat()).params.seed is None  # the job makes its own


def test_without_the_v1_it_is_the_same_endpoint() -> None:
    assert parse_call("/chat/completions", {"model": "m", "messages": HI}).specs == chat().specs


def test_another_url_takes_no_jobs() -> None:
    with pytest.raises(InvalidParameter, match="url = '/v1/images' takes no jobs"):
        parse_call("/v1/images", {"model": "m"})


NULLABLE = (
    *("stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice"),
    *("parallel_tool_calls", "functions", "function_call", "response_format", "reasoning_effort", "user"),
    *("service_tier", "deterministic", "lane", "priority", "idempotency_key", "expires_in", "max_run", "grammar"),
    *("json_schema", "adapters", "chat_template_kwargs", "top_k", "min_p", "ignore_eos"),
)


def test_null_is_what_clients_send_for_nothing() -> None:
    assert chat(**dict.fromkeys(NULLABLE)).specs == chat().specs
    of_completions = ("stream", "n", "echo", "suffix", "logprobs", "best_of", "max_tokens", "stop", "seed")
    assert completion(**dict.fromkeys(of_completions)).specs == completion().specs
    assert embedding(encoding_format=None, dimensions=None, user=None).specs == embedding().specs


def test_what_only_openai_understands_changes_nothing() -> None:
    assert chat(**OPENAIS_OWN).specs == chat().specs
    assert completion(**OPENAIS_OWN).specs == completion().specs
    assert embedding(**OPENAIS_OWN).specs == embedding().specs


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
        ({"max_tokens": -1}, None),  # as in all of LM Studio's examples
        ({}, None),
    ],
)
def test_both_names_of_the_bound_of_tokens_count(fields: dict[str, Any], tokens: int | None) -> None:
    assert only(chat(**fields)).params.max_tokens == tokens


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 2}, {"temperature": 2}),
        ({"top_p": 0}, {"top_p": 1e-6}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"min_p": 0.1, "typical_p": 0.9, "repeat_penalty": 1.1}, {"min_p": 0.1, "typical_p": 0.9}),
        ({"presence_penalty": -2, "frequency_penalty": 2}, {"presence_penalty": -2, "frequency_penalty": 2}),
        ({"logit_bias": {"15": -100, "7": 3.5}}, {"logit_bias": {15: -100, 7: 3.5}}),
        ({"stop": "\n"}, {"stop": ("\n",)}),
        ({"stop": ["a", "b", "c", "d"]}, {"stop": ("a", "b", "c", "d")}),
        ({"stop": ""}, {"stop": ()}),
        ({"stop": []}, {"stop": ()}),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": 0}, {"seed": 0}),
        ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
        ({"seed": -1}, {"seed": None}),
    ],
)
def test_sampling(given: dict[str, Any], taken: dict[str, Any]) -> None:
    for call in (chat(**given), completion(**given)):
        params = only(call).params
        assert {name: getattr(params, name) for name in taken} == taken


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"temperature": 6}, "params.temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "params.top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "params.max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": 2**63}, "params.seed"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 9}, "params.stop"),
        ({"logit_bias": {"hello": 1}}, "params.logit_bias"),
        ({"logit_bias": {"1": 101}}, "params.logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stream": "perhaps"}, "stream"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages.0"),
        ({"model": None}, "model"),
        ({"model": ["m"]}, "model"),
        ({"lane": "fast"}, "lane"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": 1e308}, "expires_in"),
        ({"max_run": 604801}, "max_run"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "x" * 257}, "idempotency_key"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        chat(**given)

    assert str(field_of(error)).startswith(field)
    assert error.value.message.endswith(("correct this field", "high, xhigh"))


@pytest.mark.parametrize("body", [{}, {"model": "m"}, {"messages": HI}])
def test_what_is_missing_is_named(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter) as error:
        parse_call("/v1/chat/completions", body)

    assert field_of(error) in {"model", "messages"} - body.keys()


@pytest.mark.parametrize("name", ["gpt/4", "Smol", "", "../etc/passwd", "a" * 81, "m\r\nx: y", "\ud800"])
def test_a_name_that_no_model_can_have_is_an_unknown_model(name: str) -> None:
    with pytest.raises(UnknownModel) as error:
        parse_call("/v1/chat/completions", {"model": name, "messages": HI}, known=["tiny"])

    assert "tiny" in error.value.message


# --- choices, seeds and keys ---------------------------------------------------------------------------------------


def test_each_choice_is_a_job_with_a_seed_of_its_own() -> None:
    call = chat(n=3, seed=7)
    seeds = [spec.params.seed for spec in call.specs]

    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    assert call.form.choices == 3
    assert chat(n=3, seed=7).specs == call.specs


def test_choices_without_a_seed_differ_from_time_to_time() -> None:
    assert chat(n=2).specs != chat(n=2).specs


def test_choices_of_one_idempotency_key_are_the_same_jobs_again() -> None:
    first, again = chat(n=3, idempotency_key="k"), chat(n=3, idempotency_key="k")

    assert first.specs == again.specs
    assert [*first.keys()] == [*again.keys()]
    assert len(set(first.keys())) == 3
    assert chat(n=3, idempotency_key="other").specs != first.specs


def test_keys_of_choices_are_no_keys_that_somebody_else_gives() -> None:
    assert [*chat(idempotency_key="k").keys()] == ["k"]
    assert "k:1" not in [*chat(n=2, idempotency_key="k").keys()]
    assert [*chat(n=2).keys()] == [None, None]


def test_prompts_of_one_request_stand_beside_each_other_with_their_choices() -> None:
    call = completion(prompt=["a", "b"], n=2, seed=1)

    assert [spec.prompt for spec in call.specs] == ["a", "a", "b", "b"]
    assert [spec.params.seed for spec in call.specs[:2]] == [spec.params.seed for spec in call.specs[2:]]


def test_choices_differ_in_their_seed_alone_and_a_prompt_is_read_once_for_all() -> None:
    first, *others = chat(n=3, seed=7, temperature=0.5, stop="x").specs

    assert first.params.seed == 7
    for other in others:
        assert other.messages is first.messages
        assert other == first.model_copy(update={"params": other.params})
        assert JobSpec.model_validate_json(other.to_json()) == other
    assert len({spec.params.seed for spec in (first, *others)}) == 3


def test_one_request_has_a_bound_of_jobs() -> None:
    with pytest.raises(InvalidParameter, match="100 prompts with n = 128 are 12800 jobs; send at most 2048"):
        completion(prompt=["x"] * 100, n=128)
    assert len(embedding(input=["x"] * 2048).specs) == 2048  # as many as OpenAI takes
    with pytest.raises(InvalidParameter, match="send at most 2048"):
        embedding(input=["x"] * 2049)


def test_the_best_of_several_is_not_chosen() -> None:
    assert len(completion(best_of=2, n=2).specs) == 2
    with pytest.raises(InvalidParameter, match="best_of = 3 with n = 2") as error:
        completion(best_of=3, n=2)
    assert field_of(error) == "best_of"


# --- whose, and how urgent -----------------------------------------------------------------------------------------


def test_the_key_s_user_counts_more_than_the_body_s() -> None:
    body = {"model": "m", "messages": HI, "user": "ann"}

    assert only(parse_call("/v1/chat/completions", body)).user == "ann"
    assert only(parse_call("/v1/chat/completions", body, user="bob")).user == "bob"


def test_a_user_may_be_any_text() -> None:
    names = [only(chat(user=name)).user for name in ("Ann Example <ann@example.org>", "ann@example.org", "\ud800", "é")]

    assert len(set(names)) == 4
    assert all(name.startswith("u-") for name in names)


@pytest.mark.parametrize(
    ("fields", "lane"),
    [
        ({}, "interactive"),
        ({"service_tier": "flex"}, "bulk"),
        ({"service_tier": "default"}, "interactive"),
        ({"priority": -1}, "bulk"),
        ({"priority": 5}, "interactive"),
        ({"lane": "bulk"}, "bulk"),
        ({"lane": "interactive", "service_tier": "flex"}, "interactive"),
    ],
)
def test_lanes(fields: dict[str, Any], lane: str) -> None:
    assert only(chat(**fields)).lane == only(embedding(**fields)).lane == lane


def test_a_lane_of_the_door_is_for_those_that_name_none() -> None:
    body = {"model": "m", "messages": HI}

    assert only(parse_call("/v1/chat/completions", body, lane="bulk")).lane == "bulk"
    assert only(parse_call("/v1/chat/completions", {**body, "lane": "interactive"}, lane="bulk")).lane == "interactive"


def test_times_and_determinism_reach_the_job() -> None:
    spec = only(chat(expires_in=1.5, max_run="2", deterministic="true"))  # headers are texts

    assert (spec.expires_in_ms, spec.max_run_ms, spec.deterministic) == (1500, 2000, True)


def test_adapters_by_name_and_by_scale() -> None:
    assert only(chat(adapters=["pirate"])).adapters == {"pirate": None}
    assert only(chat(adapters={"pirate": 0.5})).adapters == {"pirate": 0.5}


# --- forms of output -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"response_format": {"type": "text"}}, FreeText()),
        ({"response_format": {"type": "json_object"}}, JsonObject()),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "p", "schema": SCHEMA, "strict": True},
                }
            },
            JsonSchema(schema=SCHEMA),
        ),
        ({"json_schema": SCHEMA}, JsonSchema(schema=SCHEMA)),
        ({"grammar": 'root ::= "a"'}, Grammar(grammar='root ::= "a"')),
        ({"response_format": None}, FreeText()),
    ],
)
def test_forms(fields: dict[str, Any], form: object) -> None:
    assert only(chat(**fields)).params.response_format == form
    assert only(completion(**fields)).params.response_format == form


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "xml"}},
        {"response_format": {}, "json_schema": {"not": {}}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "p"}}},
        {"response_format": "json"},
        {"grammar": "root ::= nothing"},
        {"grammar": 'root ::= "a"', "json_schema": SCHEMA},
        {"response_format": {"type": "json_object"}, "ignore_eos": True},
    ],
)
def test_forms_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        chat(**fields)


# --- logprobs ------------------------------------------------------------------------------------------------------


def test_logprobs_of_chats_are_a_flag_and_a_number() -> None:
    asked: list[dict[str, Any]]
    asked = [{}, {"logprobs": False}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3}, {"top_logprobs": 2}]

    assert [only(chat(**fields)).params.logprobs for fields in asked] == [None, None, 0, 3, 2]


def test_logprobs_of_completions_are_a_number() -> None:
    assert [only(completion(logprobs=number)).params.logprobs for number in (None, 0, 5)] == [None, 0, 5]


def test_many_choices_of_a_huge_prompt_are_too_much_for_one_request() -> None:
    prompt = "x" * 1_000_000

    assert len(completion(prompt=prompt, n=16).specs) == 16
    with pytest.raises(InvalidParameter, match="1000000 characters with n = 17 is 17000000 in all"):
        completion(prompt=prompt, n=17)


def test_what_evaluation_harnesses_ask_for() -> None:
    spec = only(completion(echo=True, logprobs=1, max_tokens=0))

    assert (spec.echo, spec.params.prompt_logprobs, spec.params.max_tokens) == (True, 1, 0)
    # One that asks for a token drops its entry: an end of text, which has none, would cost one of the prompt's.
    assert only(completion(echo=True, logprobs=1, max_tokens=1)).params.ignore_eos


# --- prompts -------------------------------------------------------------------------------------------------------


def test_prompts_and_suffix() -> None:
    assert only(completion(prompt="def f(", suffix="):")).suffix == "):"
    assert only(completion(suffix="")).suffix == ""
    assert only(completion()).kind == "complete"


@pytest.mark.parametrize("prompt", ["", [""], ["a", ""]])
def test_an_empty_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(PromptEmpty):
        completion(prompt=prompt)
    with pytest.raises(PromptEmpty):
        embedding(input=prompt)


@pytest.mark.parametrize("prompt", [[], None, 5, {"a": 1}, [["a"]], [1.5], ["a", 1]])
def test_what_is_no_prompt_is_refused_by_name(prompt: Any) -> None:
    with pytest.raises(InvalidParameter) as error:
        completion(prompt=prompt)
    assert str(field_of(error)).startswith("prompt")
    with pytest.raises(InvalidParameter) as error:
        embedding(input=prompt)
    assert str(field_of(error)).startswith("input")


def test_each_text_to_embed_is_a_job() -> None:
    call = embedding(input=["a", "b"], dimensions=4)

    assert [(spec.kind, spec.prompt, spec.dimensions) for spec in call.specs] == [("embed", "a", 4), ("embed", "b", 4)]
    assert not call.stream


def test_vectors_come_in_two_encodings_and_no_third() -> None:
    with pytest.raises(InvalidParameter, match="encoding_format"):
        embedding(encoding_format="int8")


def test_a_stream_may_tell_usage_and_queue() -> None:
    call = chat(
        stream=True, stream_options={"include_usage": True, "include_queue": None, "include_obfuscation": False}
    )

    assert call.stream
    assert call.stream_options.include_usage
    assert not call.stream_options.include_queue
    assert only(call).stream
