"""Remote models: a real server on loopback, asked by a real instance of a real fleet."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from packtrain.broker.errors import (
    FleetLoop,
    InvalidParameter,
    InvalidRequest,
    ModelLoadFailed,
    NotDeterministic,
    RemoteFailed,
)
from packtrain.broker.hops import HEADER, fleet_id
from packtrain.broker.ids import new_job_id
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.states import InstanceState, JobState
from packtrain.client import Job, JobCancelled, JobExpired
from packtrain.client.cli.main import app
from tests.support.fleets import Fleet, eventually, scripted_fleet, until_first_text
from tests.support.openai_server import OpenAIServer, Reply, openai_server

pytestmark = pytest.mark.integration

KEY = "sk-a-very-secret-key"
TOOLS = [{"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}]


def config(server: OpenAIServer, name: str = "far", **more: Any) -> str:
    """A section of packtrain.toml."""
    fields = {"url": server.url, "model": "big", "key_env": "BIG_KEY", "concurrency": 2, **more}
    return (
        f"[models.{name}.remote]\n"
        + "\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())
        + "\n"
    )


def told(job: Job) -> str:
    """What a reader of a job that fails is given before it hears of that."""
    texts: list[str] = []
    with pytest.raises(RemoteFailed):
        texts.extend(delta.text for delta in job.deltas())
    return "".join(texts)


@pytest.fixture(scope="module")
def module_server() -> Iterator[OpenAIServer]:
    with openai_server(key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def fleet(module_server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("remote")
    aliases = '[aliases.chat]\ntargets = ["near", "far"]\nspill_after_s = 1\n[aliases.try]\ntargets = ["far", "near"]\n'
    sections = config(module_server, retry_s=3, timeout_s=1.5, price_in=1000, price_out=2000)
    home.joinpath("packtrain.toml").write_text(sections + aliases)
    near = {"n_slots": 1, "step_ms": 60, "n_ctx": 128, "reserved_slots": 0}
    with scripted_fleet(home, {"near": near}, BIG_KEY=KEY) as running:
        yield running


@pytest.fixture
def server(module_server: OpenAIServer) -> OpenAIServer:
    """The server, which forgets what it was told by the last test."""
    module_server.seen.clear()
    module_server.script.clear()
    module_server.usual = Reply()
    module_server.num_left = 0
    return module_server


def test_a_remote_model_answers_like_any_other(fleet: Fleet, server: OpenAIServer) -> None:
    result = fleet.client.generate("far", "hello", temperature=0, max_tokens=20, seed=7)

    assert (result.text, result.finish_reason, result.seed) == ("olleh", "stop", 7)
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (7, 3)
    assert result.usage.cost == pytest.approx((7 * 1000 + 3 * 2000) / 1e6)
    assert result.receipt is not None
    assert result.receipt.remote.endswith(" big")
    proofs = {result.receipt.model_sha256, result.receipt.numerics_class, result.receipt.output_sha256}
    assert proofs == {""}
    (seen,) = server.seen
    assert seen.body == {
        "model": "big", "messages": [{"role": "user", "content": "hello"}], "stream": True,
        "stream_options": {"include_usage": True}, "temperature": 0.0, "max_tokens": 20, "seed": 7,
    }  # fmt: skip
    assert seen.headers["authorization"] == f"Bearer {KEY}"


def test_a_stream_comes_piece_by_piece(fleet: Fleet, server: OpenAIServer) -> None:
    server.usual = Reply(piece_s=0.1)
    job = fleet.client.submit("far", "piecemeal")
    begin = time.monotonic()
    arrivals = [(text, time.monotonic() - begin) for text in job.stream()]

    assert "".join(text for text, _ in arrivals) == "laemeceip" == job.result().text
    assert len(arrivals) > 3
    assert arrivals[-1][1] - arrivals[0][1] > 0.3


def test_reasoning_and_calls_come_in_their_parts(fleet: Fleet, server: OpenAIServer) -> None:
    server.usual = Reply(
        deltas=(
            {"role": "assistant", "reasoning_content": "Hm."},
            {"content": "I look."},
            {
                "tool_calls": [
                    {"index": 0, "id": "c1", "type": "function", "function": {"name": "time", "arguments": ""}}
                ]
            },
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"zone"'}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
        ),
        finish="tool_calls",
    )
    job = fleet.client.submit("far", "time?", tools=TOOLS, tool_choice="required")
    deltas = list(job.deltas())
    result = job.result()

    assert (result.text, result.reasoning, result.finish_reason) == ("I look.", "Hm.", "tool_calls")
    (call,) = result.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("c1", "time", '{"zone": 1}')
    assert "".join(delta.reasoning for delta in deltas) == "Hm."
    assert server.bodies[0]["tools"][0]["function"]["name"] == "time"
    assert server.bodies[0]["tool_choice"] == "required"


def test_texts_are_continued_and_embedded(fleet: Fleet, server: OpenAIServer) -> None:
    assert fleet.client.generate("far", "abc", raw=True).text == "cba"
    (vector,) = fleet.client.embed("far", ["abc"])

    assert vector == pytest.approx([0.6, 0.0, 0.8])
    assert [seen.path for seen in server.seen] == ["/v1/completions", "/v1/embeddings"]


def test_a_busy_server_is_asked_again_when_it_says_so(fleet: Fleet, server: OpenAIServer) -> None:
    server.script.extend([Reply(429, {"Retry-After": "1"}), Reply(hang_up=True)])

    assert fleet.client.generate("far", "again").text == "niaga"
    times = [seen.at for seen in server.seen]
    assert len(times) == 3
    assert 1 <= times[1] - times[0] < 2


def test_a_server_that_stays_busy_fails_the_job_with_its_words(fleet: Fleet, server: OpenAIServer) -> None:
    server.usual = Reply(503, body={"error": {"message": "the disk is full"}})
    with pytest.raises(
        RemoteFailed, match=r"could not answer \(503, the last of \d tries\): the disk is full; .*retry_s"
    ):
        fleet.client.generate("far", "in vain", timeout=20)

    server.seen.clear()
    server.usual = Reply(429, {"Retry-After": "60"})
    begin = time.monotonic()
    with pytest.raises(RemoteFailed, match="429") as caught:
        fleet.client.generate("far", "not that long", timeout=20)
    assert time.monotonic() - begin < 2
    assert (caught.value.data["retry_after_s"], len(server.seen)) == (60, 1)
    time.sleep(3)  # as long as the instance leaves the server alone after that


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (Reply(400, body={"error": {"message": "no top_k", "param": "top_k"}}), InvalidParameter, "no top_k"),
        (Reply(404, body={"detail": "Not Found"}), RemoteFailed, r"Not Found; correct url or model \('big'\)"),
        (Reply(302, {"Location": "http://elsewhere/"}), RemoteFailed, "sends us on"),
        (Reply(402, body="pay first"), RemoteFailed, "pay first"),
        (Reply(403, body={"error": "flagged"}), RemoteFailed, "flagged"),  # the key is good: only this job fails
    ],
)  # fmt: skip
def test_a_refusal_ends_the_job_at_once(
    fleet: Fleet, server: OpenAIServer, reply: Reply, error: type[Exception], said: str
) -> None:
    server.script.append(reply)
    with pytest.raises(error, match=said):
        fleet.client.generate("far", "no")

    assert len(server.seen) == 1
    assert fleet.client.generate("far", "yes").text == "sey"


def test_an_answer_that_breaks_off_is_kept_and_never_doubled(fleet: Fleet, server: OpenAIServer) -> None:
    for reply in (Reply(cut_after=3, piece_s=0.05), Reply(error={"message": "out of memory"})):
        server.seen.clear()
        server.script.append(reply)
        job = fleet.client.submit("far", "abcdef")
        with pytest.raises(RemoteFailed, match="broke off"):
            job.result(timeout=10)

        outcome = job.status().outcome
        assert outcome is not None
        assert outcome.text == told(job) == "fedcba"[: reply.cut_after]
        assert len(server.seen) == 1


def test_a_silent_server_is_given_up(fleet: Fleet, server: OpenAIServer) -> None:
    server.usual = Reply(silent_s=10)
    with pytest.raises(RemoteFailed, match="silent"):
        fleet.client.generate("far", "hello?", timeout=20)

    assert len(server.seen) == 2
    eventually(lambda: server.num_left == 2, "the connections to be closed")


def test_cancelling_and_expiring_close_the_connection(fleet: Fleet, server: OpenAIServer) -> None:
    server.usual = Reply(piece_s=0.2)
    job = fleet.client.submit("far", "x" * 200)
    until_first_text(job)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout=10)
    eventually(lambda: server.num_left == 1, "the server to notice", 5)
    outcome = job.status().outcome
    assert outcome is not None
    assert outcome.text.startswith("x")

    with pytest.raises(JobExpired):
        fleet.client.generate("far", "x" * 200, expires_in=1)
    eventually(lambda: server.num_left == 2, "the server to notice", 5)


def test_no_more_requests_run_at_once_than_the_server_shall_have(fleet: Fleet, server: OpenAIServer) -> None:
    server.most_at_once = 0
    server.usual = Reply(silent_s=0.2)
    results = list(fleet.client.map("far", [f"n{i}" for i in range(6)], in_flight=6))

    assert [result.text for result in results] == [f"{i}n" for i in range(6)]
    assert server.most_at_once == 2


def test_what_no_server_can_do_is_refused_by_name(fleet: Fleet, server: OpenAIServer) -> None:
    with pytest.raises(InvalidRequest, match="grammar"):
        fleet.client.generate("far", "x", grammar='root ::= "a"')
    with pytest.raises(InvalidRequest, match="tokens"):
        fleet.client.count_tokens("far", "x")
    with pytest.raises(NotDeterministic, match="nothing about its answers can be proven"):
        fleet.client.generate("far", "x", deterministic=True, timeout=20)

    assert not server.seen


def test_an_instance_that_dies_in_mid_answer_doubles_nothing(fleet: Fleet, server: OpenAIServer) -> None:
    server.script.append(Reply(piece_s=0.1))
    job = fleet.client.submit("far", "abcdefgh" * 10)
    until_first_text(job)
    fleet.kill(fleet.instance("far").pid)
    with pytest.raises(RemoteFailed, match="was lost"):
        job.result(timeout=30)

    outcome = job.status().outcome
    assert outcome is not None
    assert outcome.text
    assert outcome.text == told(job)
    assert len(server.seen) == 1
    assert fleet.client.generate("far", "alive", timeout=30).text == "evila"


def test_the_key_stands_nowhere(fleet: Fleet, server: OpenAIServer) -> None:
    instance = fleet.instance("far")
    argv = Path(f"/proc/{instance.pid}/cmdline").read_bytes()
    said = "".join(path.read_text(errors="replace") for path in fleet.running.home.rglob("*.log"))

    assert KEY.encode() not in argv
    assert KEY not in said
    shown = CliRunner().invoke(app, ["models", "show", "far"], env={"PACKTRAIN_URL": fleet.url})
    assert "answered by 127.0.0.1:" in shown.output
    assert instance.resident_bytes < 2**27


# A name with several targets.


def test_jobs_stay_with_the_local_model_while_that_is_soon_enough(fleet: Fleet, server: OpenAIServer) -> None:
    fleet.client.load("near")
    fleet.instance("near")

    assert fleet.client.generate("chat", "near", timeout=30).text == "raen"
    assert not server.seen


def test_jobs_that_would_wait_too_long_spill_over(fleet: Fleet, server: OpenAIServer) -> None:
    long = fleet.client.submit("near", "!long", max_tokens=100)
    until_first_text(long)
    jobs = [fleet.client.submit("chat", f"n{i}") for i in range(4)]
    texts = [job.result(timeout=20).text for job in jobs]
    long.cancel()

    assert texts == [f"{i}n" for i in range(4)]
    assert len(server.seen) >= 2
    status = jobs[-1].status()
    assert status.model == "far"
    assert status.cause is not None
    assert "went on to far" in status.cause.reason


def test_a_job_falls_back_when_its_first_target_fails(fleet: Fleet, server: OpenAIServer) -> None:
    server.usual = Reply(404)
    result = fleet.client.generate("try", "hello", timeout=20)
    assert (result.text, len(server.seen)) == ("olleh", 1)

    # The other way round: a prompt that the local model cannot hold.
    server.usual = Reply()
    assert fleet.client.generate("chat", "x" * 200, timeout=20).text == "x" * 200

    # When both fail the job ends with the last error.
    server.usual = Reply(404)
    with pytest.raises(RemoteFailed, match="404"):
        fleet.client.generate("chat", "y" * 200, timeout=20)


def test_a_job_does_not_fall_back_once_it_has_begun_or_is_wrong(fleet: Fleet, server: OpenAIServer) -> None:
    server.script.append(Reply(cut_after=2))
    with pytest.raises(RemoteFailed, match="broke off"):
        fleet.client.generate("try", "hello", timeout=20)
    server.script.append(Reply(400, body={"error": {"message": "no"}}))
    with pytest.raises(InvalidParameter):
        fleet.client.generate("try", "hello", timeout=20)


def test_a_job_that_comes_back_to_its_fleet_is_not_sent_out_again(fleet: Fleet, server: OpenAIServer) -> None:
    fleet.client.generate("far", "out")
    (ours,) = server.seen[0].headers[HEADER.lower()].split(", ")
    transport = fleet.client._transport
    turn = {"role": "user", "content": "back"}

    with pytest.raises(FleetLoop, match="each other's remote"):
        transport.submit(new_job_id(), JobSpec.model_validate({"model": "far", "messages": [turn], "via": [ours]}))
    # By another way round it goes on, with the whole way behind it.
    other = fleet_id("another")
    spec = JobSpec.model_validate({"model": "far", "messages": [turn], "via": [other]})
    job = fleet.client.job(transport.submit(new_job_id(), spec).job_id)
    assert job.result(timeout=10).text == "kcab"
    assert server.seen[-1].headers[HEADER.lower()] == f"{other}, {ours}"
    # And what has been out stays with what is loaded here.
    spec = JobSpec.model_validate({"model": "chat", "messages": [turn], "via": [ours]})
    job = fleet.client.job(transport.submit(new_job_id(), spec).job_id)
    assert job.result(timeout=10).text == "kcab"
    assert job.status().model == "near"


# Keys that are wrong, and a server that allows little.


@dataclass(frozen=True)
class Odd:
    """A fleet with models that something is the matter with."""

    fleet: Fleet
    server: OpenAIServer  # asks for a key


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Odd]:
    home = tmp_path_factory.mktemp("odd")
    with openai_server(key=KEY) as server, openai_server() as few:
        home.joinpath("packtrain.toml").write_text(
            config(server, "wrong", key_env="WRONG_KEY")
            + config(server, "revoked")
            + config(server, "missing", key_env="MISSING_KEY")
            + config(few, "few", key_env="", concurrency=4, requests_per_minute=3)
        )
        with scripted_fleet(home, {}, BIG_KEY=KEY, WRONG_KEY="sk-wrong") as running:
            yield Odd(running, server)


def test_a_wrong_key_is_a_fault_of_the_model_that_everybody_sees(odd: Odd) -> None:
    fleet = odd.fleet
    with pytest.raises(ModelLoadFailed, match=r"\(401\): .*valid key for it into WRONG_KEY") as caught:
        fleet.client.generate("wrong", "hello", timeout=60)
    assert "sk-wrong" not in str(caught.value)
    (node,) = fleet.client.nodes()
    failed = [i for i in fleet.client.instances() if i.model == "wrong"]
    journal = CliRunner().invoke(app, ["journal"], env={"PACKTRAIN_URL": fleet.url}).output

    assert not node.quarantine
    assert failed
    assert all(i.state is InstanceState.FAILED and "401" in i.reason for i in failed)
    assert "401" in journal
    assert not odd.server.seen


def test_a_key_that_is_taken_back_ends_the_instance_with_the_reason(odd: Odd) -> None:
    client = odd.fleet.client
    assert client.generate("revoked", "good", timeout=30).text == "doog"
    instance = odd.fleet.instance("revoked").instance
    odd.server.key = "another"
    with pytest.raises(RemoteFailed, match="401"):
        client.generate("revoked", "bad", timeout=20)

    def ended() -> str:
        ours = (i for i in client.instances() if i.instance == instance)
        return next((i.reason for i in ours if i.state.is_terminal), "")

    assert "401" in eventually(ended, "the instance to give up", 10)
    odd.server.key = KEY
    assert client.generate("revoked", "good", timeout=30).text == "doog"


def test_a_minute_has_no_more_requests_than_allowed(odd: Odd) -> None:
    jobs = [odd.fleet.client.submit("few", f"n{i}") for i in range(6)]
    for job in jobs[:3]:
        job.result(timeout=30)
    time.sleep(1)

    # The others wait in the queue and not in a slot.
    assert [job.status().state for job in jobs] == [JobState.SUCCEEDED] * 3 + [JobState.QUEUED] * 3


def test_a_node_without_the_key_says_so_and_offers_the_rest(odd: Odd) -> None:
    (node,) = odd.fleet.client.nodes()
    assert [fault.file for fault in node.faults] == ["[models.missing.remote]"]
    assert "MISSING_KEY" in node.faults[0].reason
    assert set(node.models) == {"wrong", "revoked", "few"}
