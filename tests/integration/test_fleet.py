"""A whole fleet with scripted models: what its clients see."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from packtrain.broker import keys
from packtrain.broker.celery_app import Doorbell, make_app
from packtrain.broker.chat import join_calls
from packtrain.broker.connection import connect
from packtrain.broker.ids import JobId, Route, new_job_id
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.client import (
    AsyncPacktrain,
    IdempotencyConflict,
    InvalidParameter,
    InvalidRequest,
    JobCancelled,
    JobDead,
    JobExpired,
    JobFailed,
    JobState,
    Message,
    ModelGone,
    ModelLoadFailed,
    ModelTooLarge,
    PacktrainError,
    PromptEmpty,
    PromptTooLong,
    ResultTimeout,
    Tokens,
    UnknownJob,
    UnknownModel,
)
from packtrain.client.cli.main import app
from tests.conftest import immortal_keys
from tests.support.factories import spec
from tests.support.fleets import Fleet, eventually, scripted_fleet, until_first_text

pytestmark = pytest.mark.integration

MODELS: dict[str, dict[str, Any]] = {
    "echo": {"n_slots": 24, "n_ctx": 512, "step_ms": 2},
    "slow": {"n_slots": 2, "n_ctx": 512, "step_ms": 50},
    "short": {"n_slots": 2, "keep_alive_s": 1},
    "leaving": {},
    "broken": {"fails": "the script says so"},
    "huge": {"required_mib": 10_000_000},
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with scripted_fleet(tmp_path_factory.mktemp("home"), MODELS, PACKTRAIN_OFFER_WAIT_S="2") as running:
        yield running


def test_an_answer_comes_back(fleet: Fleet) -> None:
    result = fleet.client.generate("echo", "hello")

    assert result.text == "olleh"
    assert result.finish_reason == "stop"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (5, 5)
    assert result.node == "n1"


def test_twenty_four_jobs_share_one_batch_and_none_gets_the_answer_of_another(fleet: Fleet) -> None:
    fleet.client.generate("echo", "warm up")
    prompts = [f"prompt {i} " + chr(ord("a") + i) * 220 for i in range(24)]  # long enough for all to meet

    results = list(fleet.client.map("echo", prompts, in_flight=24))

    assert [r.text for r in results] == [prompt[::-1] for prompt in prompts]
    assert max(r.batch_peak for r in results) == 24


def test_map_keeps_at_most_so_many_jobs_in_flight(fleet: Fleet) -> None:
    taken = 0
    peak = 0

    def prompts() -> Iterator[str]:
        nonlocal taken
        for i in range(30):
            taken += 1
            yield f"number {i}"

    for given, result in enumerate(fleet.client.map("echo", prompts(), in_flight=5)):
        peak = max(peak, taken - given)
        assert result.text == f"number {given}"[::-1]

    assert taken == 30
    assert peak <= 5 + 1


def test_map_returns_errors_when_asked_and_goes_on(fleet: Fleet) -> None:
    results = list(fleet.client.map("echo", ["good", "!fail", "fine"], on_error="return"))

    assert [r.text for r in results] == ["doog", "", "enif"]
    assert isinstance(results[1].error, JobFailed)


def test_map_puts_a_refused_prompt_into_its_place(fleet: Fleet) -> None:
    results = list(fleet.client.map("echo", ["ab", "", "cd"], on_error="return"))

    assert [r.text for r in results] == ["ba", "", "dc"]
    assert isinstance(results[1].error, PromptEmpty)


def test_map_raises_a_failure_at_its_turn(fleet: Fleet) -> None:
    results = fleet.client.map("echo", ["first " * 20, "!fail", "third"])

    assert next(results).text == ("first " * 20)[::-1]
    with pytest.raises(JobFailed):
        next(results)


@pytest.mark.parametrize("options", [{"in_flight": 0}, {"idempotency_key": "k"}])
def test_map_refuses_what_it_cannot_do(fleet: Fleet, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        next(iter(fleet.client.map("echo", ["x"], **options)))


def test_leaving_a_map_early_cancels_what_is_in_flight(fleet: Fleet) -> None:
    for _ in fleet.client.map("slow", ["a", "b!long", "c!long", "d!long"], in_flight=4, max_tokens=400):
        break

    states = {status.id: status for status in fleet.client.jobs(4)}
    eventually(
        lambda: all(fleet.client.job(job_id).status().state.is_terminal for job_id in states),
        "the jobs to be cancelled",
    )


def test_a_stream_gives_the_text_piece_by_piece(fleet: Fleet) -> None:
    pieces = list(fleet.client.stream("slow", "stream me"))

    assert "".join(pieces) == "em maerts"
    assert len(pieces) > 1


def test_closing_a_stream_cancels_the_job(fleet: Fleet) -> None:
    with fleet.client.stream("slow", "!long", max_tokens=400) as texts:
        next(iter(texts))
        job = texts.job

    with pytest.raises(JobCancelled):
        job.result(timeout=10)


def test_breaking_out_of_a_stream_cancels_the_job(fleet: Fleet) -> None:
    stream = fleet.client.stream("slow", "!long", max_tokens=400)
    job = stream.job
    for _ in stream:
        break
    del stream

    with pytest.raises(JobCancelled):
        job.result(timeout=10)


def test_closing_a_stream_before_it_is_read_cancels_the_job(fleet: Fleet) -> None:
    stream = fleet.client.stream("slow", "!long", max_tokens=400)
    stream.close()

    with pytest.raises(JobCancelled):
        stream.job.result(timeout=10)


def test_a_late_reader_sees_the_whole_text(fleet: Fleet) -> None:
    job = fleet.client.submit("echo", "read me later")
    job.result()

    assert "".join(job.stream()) == "retal em daer"


def test_a_reader_who_comes_after_the_stream_has_expired_still_gets_the_text(fleet: Fleet) -> None:
    job = fleet.client.submit("echo", "too late")
    job.result()
    redis = connect(fleet.url, name="test")
    redis.delete(keys.out(JobId(job.id)))
    redis.close()

    assert list(job.stream()) == ["etal oot"]


TOOLS = [{"type": "function", "function": {"name": "time"}}]
PARTS = '<think>Hm.</think>I look.\n<tool_call>{"name": "time", "arguments": {"zone": 1}}</tool_call>'


def test_an_answer_comes_in_its_parts(fleet: Fleet) -> None:
    job = fleet.client.submit("slow", PARTS[::-1], tools=TOOLS)
    deltas = list(job.deltas())
    result = job.result()

    assert (result.text, result.reasoning, result.finish_reason) == ("I look.", "Hm.", "tool_calls")
    assert [(c.function.name, c.function.arguments) for c in result.tool_calls] == [("time", '{"zone": 1}')]
    assert len(deltas) > 3
    assert "".join(delta.text for delta in deltas) == "".join(job.stream()) == "I look."
    assert "".join(delta.reasoning for delta in deltas) == "Hm."
    assert join_calls(call for delta in deltas for call in delta.calls) == result.tool_calls


def test_a_stream_has_the_logprobs_of_its_tokens_when_asked_for(fleet: Fleet) -> None:
    job = fleet.client.submit("slow", "likely", logprobs=2)
    deltas = list(job.deltas())
    result = job.result()

    told = [entry for delta in deltas for entry in delta.logprobs]
    assert len(deltas) > 1
    assert "".join(entry.text for entry in told) == result.text == "ylekil"
    assert tuple(told) == result.logprobs
    assert all(entry.top for entry in told)
    assert not any(delta.logprobs for delta in fleet.client.submit("slow", "unasked").deltas())


def test_a_tool_call_can_be_answered_with_the_call_as_it_came(fleet: Fleet) -> None:
    asked = fleet.client.generate("echo", PARTS[::-1], tools=TOOLS)
    turns: list[Any] = [
        {"role": "user", "content": "What time is it?"},
        Message(role="assistant", content=asked.text, tool_calls=asked.tool_calls),
        {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "noon"},
    ]

    assert fleet.client.generate("echo", turns, tools=TOOLS).text == "noon"


def test_parts_are_there_for_a_reader_who_comes_too_late(fleet: Fleet) -> None:
    job = fleet.client.submit("echo", PARTS[::-1], tools=TOOLS)
    result = job.result()
    redis = connect(fleet.url, name="test")
    redis.delete(keys.out(JobId(job.id)))
    redis.close()
    (delta,) = job.deltas()

    assert (delta.text, delta.reasoning, join_calls(delta.calls)) == ("I look.", "Hm.", result.tool_calls)


def test_tokens_are_counted(fleet: Fleet) -> None:
    assert fleet.client.count_tokens("echo", "hello") == 5
    assert fleet.client.count_tokens("echo", "x" * 2000, raw=True) == 2000


def test_tokens_are_a_prompt_like_any_other(fleet: Fleet) -> None:
    ids = Tokens(b"hello")
    scored = fleet.client.generate("echo", ids, echo=True, max_tokens=0, prompt_logprobs=1)
    told = "".join(fleet.client.stream("echo", ids))

    assert (scored.text, [entry.token for entry in scored.prompt_logprobs]) == ("hello", list(ids))
    assert told == "olleh"
    assert [result.text for result in fleet.client.map("echo", [ids, Tokens(b"ab")])] == ["olleh", "ba"]
    assert fleet.client.embed("echo", ids) == fleet.client.embed("echo", "hello")
    assert fleet.client.embed("echo", [ids, "x"])[0] == fleet.client.embed("echo", "hello")
    assert fleet.client.count_tokens("echo", ids) == 5


def test_a_token_that_the_model_has_not_is_a_clear_error(fleet: Fleet) -> None:
    with pytest.raises(InvalidParameter, match=r"prompt_tokens.1 = 300.*has 257 tokens.*packtrain tokenize"):
        fleet.client.generate("echo", Tokens([1, 300]))


def test_texts_become_tokens_and_texts_again(fleet: Fleet) -> None:
    pieces = fleet.client.tokenize("echo", "a\u00e9")

    assert [(piece.token, piece.data) for piece in pieces] == [(97, b"a"), (195, b"\xc3"), (169, b"\xa9")]
    assert fleet.client.detokenize("echo", [piece.token for piece in pieces]) == "a\u00e9"
    assert fleet.client.detokenize("echo", [104, 256]) == "h<end>"
    assert [piece.text for piece in fleet.client.tokenize("echo", [{"role": "user", "content": "Hi"}])] == ["H", "i"]


def test_the_async_twin_tokenizes(fleet: Fleet) -> None:
    async def main() -> tuple[list[int], str]:
        async with AsyncPacktrain(fleet.url) as client:
            pieces = await client.tokenize("echo", "ab")
            return [piece.token for piece in pieces], await client.detokenize("echo", b"ab")

    assert asyncio.run(main()) == ([97, 98], "ab")


def test_the_command_line_shows_reasoning_only_when_asked_and_counts(fleet: Fleet) -> None:
    def packtrain(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = "from packtrain.client.cli.main import main; main()"
        environment = {**os.environ, "PACKTRAIN_URL": fleet.url, "PACKTRAIN_HOME": str(fleet.running.home)}
        return subprocess.run(
            [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=True
        )

    prompt = "<think>Hm.</think>Yes"[::-1]
    quiet, shown = packtrain("run", "echo", prompt), packtrain("run", "echo", prompt, "--show-reasoning")

    assert (quiet.stdout, quiet.stderr) == ("Yes\n", "")
    assert (shown.stdout, shown.stderr) == ("Yes\n", "Hm.\n")
    assert packtrain("count", "echo", "hello").stdout == "5\n"
    assert packtrain("tokenize", "echo", "a\u00e9").stdout == "      97  'a'\n     195  b'\\xc3'\n     169  b'\\xa9'\n"
    assert json.loads(packtrain("tokenize", "echo", "\u00e9", "--json").stdout)["tokens"][0] == {
        "token": 195, "text": "\ufffd", "raw": "c3",
    }  # fmt: skip


def test_a_queued_job_is_cancelled_at_once(fleet: Fleet) -> None:
    blockers = [fleet.client.submit("slow", "!long", max_tokens=400) for _ in range(2)]
    for job in blockers:
        until_first_text(job)
    waiting = fleet.client.submit("slow", "never")

    assert waiting.cancel() is JobState.CANCELLED
    for job in blockers:
        job.cancel()
    with pytest.raises(JobCancelled):
        waiting.result()


def test_a_running_job_is_cancelled_within_a_second(fleet: Fleet) -> None:
    job = fleet.client.submit("slow", "!long", max_tokens=400)
    until_first_text(job)

    asked = time.monotonic()
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout=10)

    assert time.monotonic() - asked < 5
    assert (outcome := job.status().outcome) is not None
    assert outcome.text


def test_the_same_idempotency_key_is_the_same_job(fleet: Fleet) -> None:
    first = fleet.client.submit("echo", "once", idempotency_key="k1")
    again = fleet.client.submit("echo", "once", idempotency_key="k1")

    assert again.id == first.id
    with pytest.raises(IdempotencyConflict):
        fleet.client.submit("echo", "other", idempotency_key="k1")


def test_a_job_expires_while_it_waits_and_while_it_runs(fleet: Fleet) -> None:
    blockers = [fleet.client.submit("slow", "!long", max_tokens=400, expires_in=1.5) for _ in range(2)]
    waiting = fleet.client.submit("slow", "late", expires_in=0.5)

    for job in (waiting, *blockers):
        with pytest.raises(JobExpired):
            job.result(timeout=20)


def test_waiting_for_a_result_ends_but_the_job_goes_on(fleet: Fleet) -> None:
    job = fleet.client.submit("slow", "take your time")

    with pytest.raises(ResultTimeout):
        job.result(timeout=0.05)
    assert job.result().text == "emit ruoy ekat"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"model": "nosuch", "prompt": "x"}, UnknownModel),
        ({"model": "echo", "prompt": ""}, PromptEmpty),
        ({"model": "echo", "prompt": " \n"}, PromptEmpty),
        ({"model": "echo", "prompt": []}, PromptEmpty),
        ({"model": "echo", "prompt": "x", "max_tokens": -1}, InvalidParameter),
        ({"model": "echo", "prompt": "x", "temperature": float("nan")}, InvalidParameter),
        ({"model": "echo", "prompt": "x", "temprature": 1}, InvalidParameter),
        ({"model": "echo", "prompt": "bad \udcff text"}, InvalidParameter),
        ({"model": "echo", "prompt": "x" * 5_000_000}, InvalidParameter),
        ({"model": "echo", "prompt": "x " * 50_000}, PromptTooLong),
        (
            {"model": "echo", "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
            InvalidRequest,
        ),
        ({"model": "Echo!", "prompt": "x"}, InvalidParameter),
        ({"model": "echo", "prompt": {"role": "user", "content": "x"}}, InvalidParameter),
        ({"model": "echo", "prompt": ["x", "y"]}, InvalidParameter),
        ({"model": "echo", "prompt": None}, InvalidParameter),
        ({"model": "echo", "prompt": "x", "expires_in": float("inf")}, InvalidParameter),
    ],
)
def test_a_wrong_request_is_a_clear_error_and_the_fleet_lives(
    fleet: Fleet, arguments: dict[str, object], error: type[PacktrainError]
) -> None:
    with pytest.raises(error) as caught:
        fleet.client.generate(**arguments)  # type: ignore[arg-type]

    assert ";" in caught.value.message  # every message ends with its remedy
    assert fleet.client.generate("echo", "alive").text == "evila"


def test_a_job_whose_model_no_node_offers_any_more_fails_with_what_would_help(fleet: Fleet) -> None:
    (fleet.running.home / "models" / "leaving.scripted.json").unlink()
    eventually(lambda: all("leaving" not in node.models for node in fleet.client.nodes()), "the file to be missed")

    with pytest.raises(ModelGone, match=r"offered the model 'leaving'.*offered now: .*echo.*submit again"):
        fleet.client.generate("leaving", "hello", timeout=30)


def test_an_unknown_job_is_named(fleet: Fleet) -> None:
    with pytest.raises(UnknownJob, match="nosuchjob"):
        fleet.client.job("nosuchjob").result()


def test_a_request_written_past_the_client_fails_alone(fleet: Fleet) -> None:
    redis = connect(fleet.url, name="test")
    store, job_id = RedisJobs(redis), new_job_id()
    submitted = store.submit(job_id, spec("x", model="echo"), max_waiting=10)
    redis.hset(keys.job(job_id), "spec", '{"v": 1, "model": "echo", "params": {"top_k": "many"}}')
    Doorbell(make_app(fleet.url, name="test")).ring(submitted.route)

    with pytest.raises(InvalidParameter, match="top_k"):
        fleet.client.job(job_id).result(timeout=10)
    redis.close()


def test_a_model_that_cannot_be_loaded_fails_its_jobs_with_the_cause_until_it_is_mended_and_asked_for(
    fleet: Fleet,
) -> None:
    with pytest.raises(ModelLoadFailed, match=r"the script says so.*packtrain load broken"):
        fleet.client.generate("broken", "x", timeout=60)

    (fleet.running.home / "models" / "broken.scripted.json").write_text(json.dumps({"n_slots": 1}))
    loaded = CliRunner().invoke(app, ["load", "broken"], env={"PACKTRAIN_URL": fleet.url})
    assert "READY" in loaded.output
    fleet.client.unload("broken")


def test_a_model_that_fits_nowhere_fails_its_jobs_with_the_shortfall(fleet: Fleet) -> None:
    with pytest.raises(ModelTooLarge, match="MiB"):
        fleet.client.generate("huge", "x", timeout=30)
    loaded = CliRunner().invoke(app, ["load", "huge"], env={"PACKTRAIN_URL": fleet.url})
    assert isinstance(loaded.exception, ModelTooLarge)
    fleet.client.unload("huge")


def test_an_idle_model_is_unloaded_after_its_keep_alive_and_comes_back(fleet: Fleet) -> None:
    fleet.client.generate("short", "x")
    first = fleet.instance("short")

    eventually(lambda: first.instance not in running_instances(fleet), "the idle model to be unloaded")

    assert fleet.client.generate("short", "again").text == "niaga"


def test_an_operator_loads_and_unloads(fleet: Fleet) -> None:
    fleet.client.load("short")
    loaded = fleet.instance("short")

    fleet.client.unload("short")

    eventually(lambda: loaded.instance not in running_instances(fleet), "the model to be unloaded")


def test_one_failing_job_harms_no_other_of_its_batch(fleet: Fleet) -> None:
    prompts = [f"neighbour {i} " * 4 for i in range(8)] + ["!fail"]

    results = list(fleet.client.map("echo", prompts, in_flight=9, on_error="return"))

    assert [r.text for r in results[:8]] == [prompt[::-1] for prompt in prompts[:8]]
    assert isinstance(results[8].error, JobFailed)


def test_a_job_that_crashes_its_instance_dies_and_its_neighbours_finish(fleet: Fleet) -> None:
    fleet.client.generate("echo", "warm up")
    neighbours = [fleet.client.submit("echo", f"{i} !long", max_tokens=300) for i in range(3)]
    for job in neighbours:
        until_first_text(job)
    poison = fleet.client.submit("echo", "!crash")

    with pytest.raises(JobDead, match="was killed by SIGABRT") as caught:
        poison.result(timeout=60)
    assert caught.value.data["signal"] == "SIGABRT"
    assert "!crash" not in str(caught.value.data)
    for number, job in enumerate(neighbours):
        answer = f"{number} !long"[::-1]
        assert job.result(timeout=60).text == (answer * 50)[:300]
    assert fleet.client.generate("echo", "alive").text == "evila"


def test_many_threads_may_share_one_client(fleet: Fleet) -> None:
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = fleet.client.generate("echo", f"thread {number}").text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == {i: f"thread {i}"[::-1] for i in range(8)}


def test_the_async_twin_does_the_same(fleet: Fleet) -> None:
    async def main() -> None:
        async with AsyncPacktrain(fleet.url) as client:
            assert (await client.generate("echo", "hello")).text == "olleh"
            texts = [text async for text in await client.stream("slow", "stream")]
            assert "".join(texts) == "maerts"
            job = await client.submit("slow", PARTS[::-1], tools=TOOLS)
            assert "".join([delta.reasoning async for delta in job.deltas()]) == "Hm."
            assert await client.count_tokens("echo", "hello") == 5
            results = [r.text async for r in client.map("echo", ["ab", "cd", "ef"], in_flight=2)]
            assert results == ["ba", "dc", "fe"]
            async with await client.stream("slow", "!long", max_tokens=400) as stream:
                async for _ in stream:
                    break
            with pytest.raises(JobCancelled):
                await stream.job.result(timeout=10)
            with pytest.raises(UnknownModel):
                await client.generate("nosuch", "x")
            with pytest.raises(PromptTooLong):
                await client.generate("echo", "x" * 2000)
            assert {m.id for m in await client.models()} >= {"echo", "slow"}
            assert [n.node for n in await client.nodes()] == ["n1"]

    asyncio.run(main())


def test_no_key_is_immortal_and_no_job_is_left_over(fleet: Fleet) -> None:
    redis = connect(fleet.url, name="test")

    eventually(lambda: not redis.zcard(keys.LEASES), "all leases to be gone")
    assert immortal_keys(redis) <= keys.PERMANENT
    assert not redis.zcard(keys.ready(Route("echo"), "interactive"))
    redis.close()


def running_instances(fleet: Fleet) -> set[str]:
    return {i.instance for i in fleet.client.instances() if not i.state.is_terminal}
