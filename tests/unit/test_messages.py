"""What clients may ask, what they are told when they may not, and that messages survive the wire."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from packtrain.broker import errors
from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.chat import CallDelta, join_calls
from packtrain.broker.chunks import Chunk, parse_event, to_entry
from packtrain.broker.errors import InvalidParameter, JobFailed, PacktrainError, PromptEmpty
from packtrain.broker.fairness import cost_of
from packtrain.broker.fields import dump_hash, load_hash
from packtrain.broker.ids import JobId
from packtrain.broker.job_spec import MAX_PROMPT_CHARS, MAX_PROMPT_TOKENS, JobSpec, parse_spec
from packtrain.broker.model_info import ModelFault, ModelInfo
from packtrain.broker.orders import Desired
from packtrain.broker.pieces import Logprob, Piece, TokenLogprob, piece_fields, text_of
from packtrain.broker.prefixes import prefix_hashes
from packtrain.broker.states import InstanceState
from tests.support.factories import MODEL, instance_beat, model_info, node_beat, spec

pytestmark = pytest.mark.unit


def chat(content: Any = "hello", **fields: Any) -> dict[str, Any]:
    """The fields of a chat, as a client sends them."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def complete(prompt: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "kind": "complete", "prompt": prompt, **fields}


def by_ids(ids: Any = (5, 6), **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "kind": "complete", "prompt_tokens": ids, **fields}


def tool(name: str = "look_up", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}, "index": 0}


def test_a_plain_chat_is_accepted_with_defaults() -> None:
    parsed = parse_spec(chat())

    assert (parsed.kind, parsed.lane, parsed.user, parsed.params.max_tokens) == ("chat", "interactive", "default", None)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (chat(params={"max_tokens": -1}), "params.max_tokens"),
        (chat(params={"max_tokens": 0}), "params.max_tokens"),
        (chat(params={"max_tokens": 0, "logprobs": 1}), "params.max_tokens"),
        (chat(params={"max_tokens": -1, "prompt_logprobs": 1}), "params.max_tokens"),
        (chat(params={"prompt_logprobs": 21}), "params.prompt_logprobs"),
        (chat(params={"max_tokens": "many"}), "params.max_tokens"),
        (chat(params={"max_tokens": 1.5}), "params.max_tokens"),
        (chat(params={"temperature": -0.1}), "params.temperature"),
        (chat(params={"temperature": math.nan}), "params.temperature"),
        (chat(params={"temperature": math.inf}), "params.temperature"),
        (chat(params={"top_p": -0.1}), "params.top_p"),
        (chat(params={"repeat_penalty": 0}), "params.repeat_penalty"),
        (chat(params={"seed": -1}), "params.seed"),
        (chat(params={"seed": 2**63}), "params.seed"),
        (chat(params={"stop": [""]}), "params.stop.0"),
        (chat(params={"stop": ""}), "params.stop.0"),
        (by_ids([-1]), "prompt_tokens.0"),
        (by_ids([5, 2**31]), "prompt_tokens.1"),
        (by_ids(["a"]), "prompt_tokens.0"),
        (by_ids([1] * (MAX_PROMPT_TOKENS + 1)), "prompt_tokens"),
        (chat(params={"stop": ["x" * 257]}), "params.stop.0"),
        (chat(params={"stop": ["x"] * 9}), "params.stop"),
        (chat(params={"logit_bias": {"-1": 1}}), "params.logit_bias"),
        (chat(params={"logit_bias": {"5": 101}}), "params.logit_bias"),
        (chat(params={"logit_bias": {str(n): 1 for n in range(1025)}}), "params.logit_bias"),
        (chat(params={"logit_bias": {"five": 1}}), "params.logit_bias.five.[key]"),
        (chat(params={"max_token": 5}), "params.max_token"),
        (chat(messagse=[]), "messagse"),
        (chat(model=None), "model"),
        (chat(model="../etc/passwd"), "model"),
        (chat(model="Tiny"), "model"),
        (chat(model="tiny\n"), "model"),
        (chat(model="x" * 81), "model"),
        (chat(user="a b"), "user"),
        (chat(lane="fast"), "lane"),
        (chat(kind="sing"), "kind"),
        (chat(v=2), "v"),
        (complete(kind="embed", dimensions=0), "dimensions"),
        (chat(expires_in_ms=0), "expires_in_ms"),
        (chat(messages="hello"), "messages"),
        (chat(messages=[{"role": "robot", "content": "x"}]), "messages.0.role"),
        (chat(messages=[{"role": "user"}]), "messages.0.content"),
        (chat(messages=[{"role": "user", "content": None}]), "messages.0.content"),
        (chat(messages=[{"role": "user", "content": "x", "nmae": "y"}]), "messages.0.nmae"),
        ({"messages": [{"role": "user", "content": "x"}]}, "model"),
        (chat([{"type": "image_url", "image_url": {"url": "x"}}]), "messages.0.content"),
        (chat([{"type": "text"}]), "messages.0.content"),
        (chat([{"type": "text", "text": "\ud800"}]), "messages.0.content"),
        (chat(messages=[{"role": "tool", "content": "x"}]), "messages.0"),
        (chat(messages=[{"role": "user", "content": "x", "tool_calls": [CALL]}]), "messages.0"),
        (
            chat(messages=[{"role": "assistant", "content": "", "tool_calls": [{"id": ""}]}]),
            "messages.0.tool_calls.0.id",
        ),
        (chat(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools.0.function.name"),
        (chat(tools=[tool(parameters={"a": {1, 2}})]), "tools.0.function.parameters"),
        (chat(tools=[tool(parameters={"a": math.nan})]), "tools.0.function.parameters"),
        (chat(tools=[tool(parameters={"a": "\ud800"})]), "tools.0.function.parameters"),
        (chat(tools=[tool(parameters={"a": "x" * 70_000})]), "tools.0.function.parameters"),
        (chat(tools=[tool(parameters=nested(40))]), "tools.0.function.parameters"),
        (chat(tools=[tool(f"f{n}") for n in range(129)]), "tools"),
        (chat(tools=[tool()], tool_choice="maybe"), "tool_choice"),
        (chat(tools=[tool()], tool_choice={"type": "function"}), "tool_choice"),
        (chat(reasoning="much"), "reasoning"),
        (chat(template_args={"messages": "x"}), "template_args"),
        (chat(template_args={"__class__": "x"}), "template_args.__class__.[key]"),
        (chat(template_args={str(n): 1 for n in range(17)}), "template_args.0.[key]"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_spec(fields)

    assert caught.value.data["field"] == field
    assert str(caught.value).startswith(f"{field} = ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("fields", [chat(dimensions=3), complete(dimensions=3)])
def test_only_a_vector_has_dimensions(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="of kind 'embed'"):
        parse_spec(fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (by_ids(kind="chat"), "kind 'chat' takes `messages`"),
        (by_ids(prompt="x"), "are the whole prompt"),
        (by_ids(suffix="x"), "are the whole prompt"),
        (by_ids(kind="count", messages=[{"role": "user", "content": "x"}]), "are the whole prompt"),
        (complete(list_tokens=True), "of kind 'count'"),
        (complete(add_special=False), "of kind 'count' with a `prompt`"),
        (complete(parse_special=True), "of kind 'count' with a `prompt`"),
        (chat(kind="count", parse_special=True), "of kind 'count' with a `prompt`"),
        (by_ids(kind="count", add_special=False), "of kind 'count' with a `prompt`"),
    ],
)
def test_tokens_are_a_prompt_of_their_own(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidParameter, match=says):
        parse_spec(fields)


@pytest.mark.parametrize("kind", ["complete", "embed", "count"])
def test_tokens_are_taken_where_a_text_is(kind: str) -> None:
    assert parse_spec(by_ids(kind=kind)).prompt_tokens == (5, 6)
    with pytest.raises(PromptEmpty):
        parse_spec(by_ids((), kind=kind))


def test_the_longest_prompts_cost_the_same_in_tokens_and_in_characters() -> None:
    longest = parse_spec(by_ids([1] * MAX_PROMPT_TOKENS))

    assert cost_of(longest) == cost_of(parse_spec(complete("x" * MAX_PROMPT_CHARS)))


def test_tokens_have_prefixes_of_their_own() -> None:
    short, long, other = (
        prefix_hashes(parse_spec(by_ids(ids))) for ids in (range(64), range(200), [*range(100), *range(100)])
    )

    assert (len(short), len(long)) == (1, 2)
    assert long[:1] == other[:1] == short
    assert long[1] != other[1]
    assert prefix_hashes(parse_spec(by_ids(range(63)))) == ()
    assert prefix_hashes(parse_spec(by_ids(range(64), adapters={"pirate": 1}))) != short


def test_one_stop_string_may_stand_alone() -> None:
    assert parse_spec(chat(params={"stop": "END"})).params.stop == ("END",)


@pytest.mark.parametrize("data", [b"", b" the", "\u20ac".encode(), b"\xe2\x82", b"\xff\x00", "\ufffd".encode()])
def test_a_piece_keeps_its_bytes_and_weighs_little_where_they_are_text(data: bytes) -> None:
    piece = Piece(**piece_fields(7, data))

    assert Piece.model_validate_json(piece.model_dump_json()) == piece
    assert (piece.data, piece.text) == (data, data.decode("utf-8", "replace"))
    assert ("raw" in piece.model_dump_json()) == (piece.text.encode() != data)


def test_pieces_of_a_split_character_make_it_up_again() -> None:
    whole = "a\U0001f999b".encode()
    pieces = [Piece(**piece_fields(n, whole[n : n + 2])) for n in range(0, 6, 2)]

    assert text_of(pieces) == "a\U0001f999b"
    assert text_of(pieces[:2]) == "a\ufffd"


def test_logprobs_survive_the_stream_bytes_and_all() -> None:
    split, whole = piece_fields(1, b"\xe2\x82"), piece_fields(2, b"a")
    top = (Logprob(**split, logprob=-0.5), Logprob(**whole, logprob=-1.5))
    told = (TokenLogprob(**split, logprob=-0.5, top=top), TokenLogprob(**whole, logprob=-1.0))
    entry = dict(zip("itkrcl", map(str, to_entry(Chunk(0, "a", (1, 2), logprobs=told))), strict=True))

    assert parse_event(JobId("j"), "1-0", {k: v for k, v in entry.items() if v}).logprobs == told
    assert entry["l"] == '[[1,["e282"],-0.5,1,["e282"],-0.5,2,"a",-1.5],[2,"a",-1.0]]'


def test_a_text_to_embed_must_not_be_empty() -> None:
    assert parse_spec(complete(kind="embed")).prompt == "hello"
    with pytest.raises(PromptEmpty):
        parse_spec(complete("", kind="embed"))


def test_a_text_to_embed_has_no_prefix_to_reuse() -> None:
    long = "x" * 2000

    assert prefix_hashes(parse_spec(complete(long)))
    assert prefix_hashes(parse_spec(complete(long, kind="embed"))) == ()


@pytest.mark.parametrize(
    "fields",
    [
        chat(prompt="and a prompt"),
        complete(messages=[{"role": "user", "content": "x"}]),
        complete(kind="embed", messages=[{"role": "user", "content": "x"}]),
    ],
)
def test_messages_and_prompt_do_not_mix(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="do not mix"):
        parse_spec(fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (complete(tools=[tool()]), "`tools` need `messages`"),
        (chat(tools=[tool(), tool()]), "same name"),
        (chat(tools=[tool(f"f{n}", parameters={"a": "x" * 60_000}) for n in range(10)]), "at most 524288"),
        (chat(tool_choice="required"), "needs `tools`"),
        (chat(tools=[tool()], tool_choice={"type": "function", "function": {"name": "other"}}), "none of the tools"),
        (chat(tools=[tool()], tool_choice="required", params={"ignore_eos": True}), "use only one"),
        (chat(suffix="x"), "no gap to fill"),
        (complete(kind="embed", suffix="x"), "no gap to fill"),
        (chat(kind="count", prompt="x"), "not both"),
        (chat(echo=True), "`echo` is of kind 'complete'"),
        (complete(echo=True, suffix="x"), "without `suffix`"),
        (complete(kind="embed", params={"prompt_logprobs": 0}), "computes no logprobs"),
        (chat(kind="count", params={"prompt_logprobs": 0}), "computes no logprobs"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        parse_spec(fields)


def test_a_round_of_tool_calls_is_accepted_as_openai_clients_send_it() -> None:
    parsed = parse_spec(
        chat(
            messages=[
                {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
                {"role": "user", "content": "Oslo?", "name": None},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": ""},
            ],
            tools=[tool(strict=True)],
            tool_choice={"type": "function", "function": {"name": "look_up"}},
        )
    )

    assert [m.content for m in parsed.messages] == ["Be\nbrief.", "Oslo?", "", ""]
    assert parsed.messages[2].tool_calls[0].function.name == "look_up"
    assert parse_spec(parsed.model_dump(mode="json")) == parsed


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=5))))
def test_pieces_of_calls_join_to_calls(pieces: list[tuple[int, str]]) -> None:
    begun: set[int] = set()
    deltas = []
    for index, arguments in pieces:
        name = "" if index in begun else f"f{index}"
        begun.add(index)
        deltas.append(CallDelta(index, arguments, f"c{index}" if name else "", name))

    calls = join_calls(deltas)

    assert [call.function.name for call in calls] == [f"f{index}" for index in sorted(begun)]
    for index, call in zip(sorted(begun), calls, strict=True):
        assert call.function.arguments == "".join(text for at, text in pieces if at == index) or "{}"


@pytest.mark.parametrize(
    "fields",
    [
        chat(""),
        chat(" \n\t"),
        chat(messages=[]),
        {"model": MODEL},
        complete(""),
        {"model": MODEL, "kind": "complete"},
    ],
)
def test_an_empty_prompt_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PromptEmpty):
        parse_spec(fields)


def test_white_space_is_a_prompt_to_continue() -> None:
    assert parse_spec(complete("\n")).prompt == "\n"


@pytest.mark.parametrize(
    "fields",
    [
        chat("\ud800"),
        complete("half of a pair: \udc00"),
        chat(params={"stop": ["\ud800"]}),
        {**chat(), "\ud800": 1},
        chat(model="\ud800"),
    ],
)
def test_text_that_is_no_unicode_is_refused_in_words_that_can_be_sent(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_spec(fields)

    assert json.dumps(caught.value.to_wire(), ensure_ascii=False).encode()


def test_a_prompt_too_large_is_refused_and_not_shown() -> None:
    half = "x" * (MAX_PROMPT_CHARS // 2 + 1)
    with pytest.raises(InvalidParameter, match=str(MAX_PROMPT_CHARS)) as caught:
        parse_spec(chat(messages=[{"role": "user", "content": half}] * 2))

    assert len(str(caught.value)) < 400


def test_the_largest_prompt_is_accepted() -> None:
    assert len(parse_spec(complete("x" * MAX_PROMPT_CHARS)).prompt) == MAX_PROMPT_CHARS


def test_a_logit_bias_survives_the_way_through_json() -> None:
    parsed = parse_spec(chat(params={"logit_bias": {"5": -100, "7": 0.5}}))

    assert parsed.params.logit_bias == {5: -100, 7: 0.5}
    assert type(parsed).model_validate_json(parsed.model_dump_json()) == parsed


def test_a_digest_tells_requests_apart_and_knows_the_same_again() -> None:
    assert spec("a").digest() == spec("a").digest()
    assert spec("a").digest() != spec("b").digest()
    assert spec("a").digest() != spec("a", lane="bulk").digest()


LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
LOOKS = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "complete", "prompt": "x"},
        {"kind": "complete", "prompt": "a", "suffix": "b", "stream": False, "deterministic": True, "meant_for": "n1"},
        {"kind": "embed", "prompt": "x", "dimensions": 3, "expires_in_ms": 5, "max_run_ms": 6},
        {"kind": "embed", "prompt_tokens": [5, 6, 7]},
        {"kind": "count", "prompt": "x", "list_tokens": True, "add_special": False, "parse_special": True},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": "\u00e9\U0001f999"}], "tools": [LOOK], "tool_choice": "required"},
        {
            "messages": [
                {"role": "user", "content": "x", "name": "me"},
                {"role": "assistant", "tool_calls": [LOOKS], "reasoning_content": "hm"},
                {"role": "tool", "content": "", "tool_call_id": "c1"},
            ],
            "tools": [LOOK],
            "tool_choice": {"type": "function", "function": {"name": "look"}},
        },
        {"messages": [{"role": "user", "content": "x"}], "params": {"response_format": {"type": "json_object"}}},
        {
            "messages": [{"role": "user", "content": "x"}],
            "params": {"response_format": {"type": "json_schema", "schema": {"type": "null"}}, "temperature": 0},
        },
        {
            "messages": [{"role": "user", "content": "x"}],
            "params": {
                "response_format": {"type": "grammar", "grammar": 'root ::= "a"'}, "logit_bias": {7: -1.5},
                "stop": ["."], "max_tokens": 0, "prompt_logprobs": 0,
            },
            "template_args": {"on": True, "many": 2}, "adapters": {"pirate": None, "polite": 0.5}, "lane": "bulk",
        },
    ],
)  # fmt: skip
def test_a_request_is_stored_without_what_says_nothing_and_read_as_it_was(fields: dict[str, Any]) -> None:
    asked = JobSpec.model_validate({"model": MODEL, **fields})
    stored = asked.to_json()

    assert JobSpec.model_validate_json(stored) == asked
    assert len(stored) < len(asked.model_dump_json())
    assert JobSpec.model_validate_json(stored).digest() == asked.digest()


def test_a_plain_request_is_stored_as_short_as_it_can_be() -> None:
    assert JobSpec(model=MODEL, messages=[{"role": "user", "content": "Hi"}]).to_json() == (
        '{"model":"tiny","messages":[{"role":"user","content":"Hi"}]}'
    )


def test_a_digest_is_that_of_earlier_versions_where_nothing_new_is_asked_for() -> None:
    assert (
        spec("a").digest() == "2b4656baef9d4082a514747e3e2215b5"
    )  # or a key sent again after an update would be refused
    assert spec("a", max_run_ms=5).digest() != spec("a").digest()
    assert spec("a", kind="count", list_tokens=True).digest() != spec("a", kind="count").digest()
    assert spec("", prompt_tokens=[5]).digest() != spec("", prompt_tokens=[6]).digest()


#: What travels on the wire never changes: a code is added here, not renamed.
CODES = {
    "internal_error": errors.PacktrainError,
    "invalid_request": errors.InvalidRequest,
    "invalid_parameter": errors.InvalidParameter,
    "prompt_empty": errors.PromptEmpty,
    "prompt_too_long": errors.PromptTooLong,
    "unknown_model": errors.UnknownModel,
    "adapter_unavailable": errors.AdapterUnavailable,
    "media_unsupported": errors.MediaUnsupported,
    "media_unreadable": errors.MediaUnreadable,
    "media_gone": errors.MediaGone,
    "unknown_job": errors.UnknownJob,
    "unknown_node": errors.UnknownNode,
    "fleet_loop": errors.FleetLoop,
    "idempotency_conflict": errors.IdempotencyConflict,
    "try_later": errors.TryLater,
    "queue_full": errors.QueueFull,
    "blobs_full": errors.BlobsFull,
    "broker_unavailable": errors.BrokerUnavailable,
    "result_timeout": errors.ResultTimeout,
    "answer_begun_anew": errors.AnswerBegunAnew,
    "job_error": errors.JobError,
    "job_failed": errors.JobFailed,
    "remote_failed": errors.RemoteFailed,
    "job_cancelled": errors.JobCancelled,
    "job_expired": errors.JobExpired,
    "job_dead": errors.JobDead,
    "model_error": errors.ModelError,
    "model_file_invalid": errors.ModelFileInvalid,
    "model_too_large": errors.ModelTooLarge,
    "not_deterministic": errors.NotDeterministic,
    "model_fetch_failed": errors.ModelFetchFailed,
    "model_load_failed": errors.ModelLoadFailed,
    "model_gone": errors.ModelGone,
    "setup_error": errors.SetupError,
}

EXAMPLES: list[PacktrainError] = [
    errors.PromptEmpty(),
    errors.PromptTooLong(model="m", num_tokens=5, limit=4),
    errors.UnknownModel(model="m", known=["b", "a"]),
    errors.AdapterUnavailable(adapter="x", model="m", usable=["b", "a"], fault="it is a model"),
    errors.MediaUnsupported(model="m", able=["b", "a"]),
    errors.MediaGone(sha256="0" * 64),
    errors.BlobsFull(size=9, limit=8),
    errors.UnknownJob(job_id="j"),
    errors.UnknownNode(node="n7", known=["n2", "n1"]),
    errors.IdempotencyConflict(job_id="j"),
    errors.QueueFull(model="m", waiting=3, limit=2, retry_after_s=1.5),
    errors.BrokerUnavailable(url="redis://h", reason="refused"),
    errors.ResultTimeout(job_id="j", timeout_s=1.5, state="QUEUED"),
    errors.AnswerBegunAnew(job_id="j1"),
    errors.ModelGone(model="m", waited_s=600, known=["b", "a"]),
    errors.ModelFileInvalid(path="/m.gguf", reason="no magic"),
    errors.NotDeterministic(model="m", reason="its kernels"),
    errors.JobDead(attempts=3, instance="m-1", cause="was killed by SIGABRT", signal="SIGABRT", tail=["bye"]),
    *(
        cls("what happened; what to do", field="x", number=3)
        for cls in CODES.values()
        if "__init__" not in vars(cls) or cls is errors.PacktrainError
    ),
]


def _tree(cls: type[PacktrainError]) -> set[type[PacktrainError]]:
    return {cls}.union(*map(_tree, cls.__subclasses__()))


def test_every_error_has_a_code_of_its_own_that_never_changes() -> None:
    ours = {cls for cls in _tree(PacktrainError) if cls.__module__ == errors.__name__}

    assert {cls.code: cls for cls in ours} == CODES
    assert len(ours) == len(CODES)


def test_every_error_has_an_example_here() -> None:
    assert {type(error) for error in EXAMPLES} == set(CODES.values())


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: error.code)
def test_an_error_is_the_same_after_the_wire(error: PacktrainError) -> None:
    again = PacktrainError.from_wire(json.loads(json.dumps(error.to_wire())))

    assert type(again) is type(error)
    assert (str(again), again.message, again.data) == (str(error), error.message, error.data)
    with pytest.raises(type(error)):
        raise again


def test_an_error_of_a_newer_fleet_is_a_failed_job_that_hides_nothing() -> None:
    again = PacktrainError.from_wire({"code": "from_the_future", "message": "why", "data": {"x": 1}})

    assert type(again) is JobFailed
    assert (str(again), again.data) == ("why", {"x": 1})


@pytest.mark.parametrize("wire", [{}, {"code": None}, {"message": None, "data": None}, {"code": ["job_failed"]}])
def test_a_mangled_error_is_still_an_error(wire: dict[str, Any]) -> None:
    assert isinstance(PacktrainError.from_wire(wire), PacktrainError)


def test_a_timeout_is_caught_as_a_timeout_too() -> None:
    assert isinstance(errors.ResultTimeout(job_id="j", timeout_s=1, state="QUEUED"), TimeoutError)


@pytest.mark.parametrize(
    "message",
    [
        instance_beat(state=InstanceState.FAILED, reason='a "quoted" \n ünïcode reason', tokens_per_s=1.25),
        node_beat(models=("a", "b"), faults=(ModelFault(file="x.gguf", reason="no magic"),), draining=True),
        model_info(alias_of="other", pinned=True, keep_alive_s=-1),
        Desired(replicas=2, unload_before_ms=5),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_is_the_same_after_a_redis_hash(message: BaseModel) -> None:
    assert load_hash(type(message), dump_hash(message)) == message


def test_every_value_of_a_hash_is_a_string() -> None:
    assert {type(value) for value in dump_hash(node_beat()).values()} == {str}


@pytest.mark.parametrize("cls", [InstanceBeat, NodeBeat, ModelInfo])
def test_a_field_of_a_newer_node_is_ignored(cls: type[BaseModel]) -> None:
    known = {InstanceBeat: instance_beat(), NodeBeat: node_beat(), ModelInfo: model_info()}[cls]

    assert load_hash(cls, {**dump_hash(known), "from_the_future": "[1]"}) == known


@given(reason=st.text(), number=st.floats(allow_nan=False))
def test_any_text_and_number_survives_a_hash(reason: str, number: float) -> None:
    beat = instance_beat(reason=reason, tokens_per_s=number)

    assert load_hash(InstanceBeat, dump_hash(beat)) == beat


def test_jobs_with_other_tools_share_no_prefix() -> None:
    def hashes(**fields: Any) -> tuple[str, ...]:
        return prefix_hashes(parse_spec(chat("x" * 1000, **fields)))

    assert hashes() == hashes()
    assert hashes(tools=[tool("a")]) == hashes(tools=[tool("a")])
    assert not set(hashes(tools=[tool("a")])) & set(hashes(tools=[tool("b")]))
    assert hashes(kind="count") == ()
