"""The engine of a remote model, against a server that is a function."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from queue import SimpleQueue
from typing import Any

import httpx2
import pytest

from packtrain.broker.blobs import MemoryBlobs
from packtrain.broker.chunks import Chunk
from packtrain.broker.errors import InvalidRequest, ModelLoadFailed, PacktrainError, RemoteFailed
from packtrain.broker.hops import HEADER
from packtrain.broker.ids import JobId, route_of
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import Claim
from packtrain.broker.memory_jobs import MemoryJobs
from packtrain.workers.chat.deltas import Delta
from packtrain.workers.engine.sequence import End, Ended, Tokens
from packtrain.workers.leased_job import LeasedJob
from packtrain.workers.remote.api import RemoteApi
from packtrain.workers.remote.engine import RemoteEngine
from packtrain.workers.remote.jobs import RemoteJobs, RemoteServer
from packtrain.workers.remote.options import RemoteOptions
from packtrain.workers.remote.requests import RemoteRequest
from packtrain.workers.remote.running import RemoteJob
from packtrain.workers.remote.turns import Turns
from tests.support.factories import INSTANCE, MODEL, NODE, spec

pytestmark = pytest.mark.unit

OPTIONS = RemoteOptions(url="http://server/v1", model="big", key_env="BIG_KEY", retry_s=0)
PATIENCE_S = 10
Handler = Callable[[httpx2.Request], Any]


class Stream(httpx2.AsyncByteStream):
    """A body that comes in pieces, and notes when its reader leaves."""

    def __init__(self, *pieces: bytes | BaseException, then: asyncio.Event | None = None) -> None:
        self._pieces = pieces
        self._then = then
        self.is_closed = threading.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
        if self._then:
            await self._then.wait()

    async def aclose(self) -> None:
        self.is_closed.set()


def event(**delta: Any) -> bytes:
    finish = delta.pop("finish", None)
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


def streamed(stream: Stream) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream; charset=utf-8"}, stream=stream)


class Engine:
    """An engine in its thread, whose server is `handler`."""

    def __init__(self, options: RemoteOptions = OPTIONS) -> None:
        self.handler: Handler = lambda request: httpx2.Response(200, json={})
        self.requests: list[httpx2.Request] = []
        self.faults: list[str] = []
        self.activity: list[bool] = []
        self.turns = Turns(None, time.monotonic)
        api = RemoteApi(options, "sk-1", transport=httpx2.MockTransport(self._meet))
        self.engine = RemoteEngine(
            options, model="far", api=api, turns=self.turns, clock=time.monotonic, on_fault=self.faults.append,
            on_activity=lambda: self.activity.append(self.engine.is_busy),
        )  # fmt: skip
        self.thread = threading.Thread(target=self.engine.run, daemon=True)
        self.thread.start()
        self.told: list[Tokens] = []
        self.ends: SimpleQueue[Ended] = SimpleQueue()

    async def _meet(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.handler(request)
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, httpx2.Response)
        return answer

    def submit(self, job_id: str = "job", *, streams: bool = True, deadline_s: float | None = None) -> None:
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        request = RemoteRequest("/chat/completions", {"model": "big"}, "chat")
        self.engine.submit(
            RemoteJob(JobId(job_id), request, ("aa", "bb"), streams, self.told.append, self.ends.put, deadline)
        )

    def run(self, **options: Any) -> Ended:
        self.submit(**options)
        return self.ends.get(timeout=PATIENCE_S)

    @property
    def text(self) -> str:
        return "".join(tokens.delta.content for tokens in self.told if tokens.delta)

    def close(self) -> None:
        self.engine.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


@pytest.fixture
def remote() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture
def bounded() -> Iterator[Engine]:
    engine = Engine(OPTIONS.model_copy(update={"max_answer_mib": 1}))
    yield engine
    engine.close()


def test_a_stream_becomes_numbered_pieces_and_an_end(remote: Engine) -> None:
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'
    whole = (
        event(role="assistant", content="")
        + b": ping\n\n"
        + event(content="é")
        + event(content="b")
        + event(finish="stop")
    )
    cuts = Stream(*[(whole + usage)[at : at + 7] for at in range(0, len(whole + usage), 7)])
    remote.handler = lambda _: streamed(cuts)
    ended = remote.run()

    assert (ended.end, ended.error, remote.text) == (End.STOP, None, "éb")
    assert [(tokens.index, tokens.tokens) for tokens in remote.told] == [(0, ()), (1, ())]
    assert ended.usage is not None
    assert (ended.usage.prompt_tokens, ended.num_output) == (4, 2)
    (request,) = remote.requests
    assert str(request.url) == "http://server/v1/chat/completions"
    assert (request.headers["authorization"], request.headers[HEADER]) == ("Bearer sk-1", "aa, bb")
    assert cuts.is_closed.wait(PATIENCE_S)
    assert remote.activity == [True, False]


def test_a_job_that_nobody_reads_gets_its_answer_in_one_piece(remote: Engine) -> None:
    remote.handler = lambda _: streamed(Stream(event(content="a"), event(content="b", finish="length")))
    ended = remote.run(streams=False)

    assert ended.end is End.LENGTH
    assert [(tokens.index, tokens.delta) for tokens in remote.told] == [(0, Delta("ab"))]


def test_an_answer_that_is_no_stream_is_one(remote: Engine) -> None:
    message = {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
    remote.handler = lambda _: httpx2.Response(200, json=message)

    assert (remote.run().end, remote.text) == (End.STOP, "whole")


@pytest.mark.parametrize(
    "broken",
    [
        (),
        (httpx2.ReadError("reset"),),
        (b"data: {oops\n\n",),
        (b'data: {"error": {"message": "oops"}}\n\n',),
        (b"data: " + b"x" * 2**23,),
    ],
)
def test_what_breaks_off_after_a_piece_is_not_asked_again(remote: Engine, broken: tuple[Any, ...]) -> None:
    remote.handler = lambda _: streamed(Stream(event(content="a"), *broken))
    ended = remote.run()

    assert (ended.end, remote.text, len(remote.requests)) == (End.FAILED, "a", 1)
    assert isinstance(ended.error, RemoteFailed)
    assert "broke off" in ended.error.message


@pytest.mark.parametrize("streams", [True, False])
def test_an_answer_that_never_ends_fails_and_is_not_asked_again(bounded: Engine, streams: bool) -> None:
    endless = Stream(*[event(content="x" * 1000)] * 5000)
    bounded.handler = lambda _: streamed(endless)
    ended = bounded.run(streams=streams)

    assert (ended.end, len(bounded.requests)) == (End.FAILED, 1)
    assert isinstance(ended.error, RemoteFailed)
    assert "max_answer_mib in [models.far.remote] allows (1 MiB)" in ended.error.message
    assert 0.9 * 2**20 < len(bounded.text) < 2**20
    assert endless.is_closed.wait(PATIENCE_S)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: streamed(Stream(*[b": ping\n\n" * 1000] * 1000)),
        lambda: streamed(Stream(*[b"data:\n\n" * 1000] * 1000)),
        lambda: httpx2.Response(200, json={"choices": [{"message": {"content": "x" * 2**21}}]}),
        lambda: httpx2.Response(
            200,
            headers={"content-type": "text/event-stream", "content-encoding": "gzip"},
            stream=Stream(gzip.compress(event(content="x" * 1000) * 5000)),
        ),
    ],
)
def test_whatever_it_is_that_a_server_sends_too_much_of(bounded: Engine, answer: Callable[[], httpx2.Response]) -> None:
    bounded.handler = lambda _: answer()
    ended = bounded.run()

    assert (ended.end, len(bounded.requests)) == (End.FAILED, 1)
    assert "max_answer_mib" in str(ended.error)


def test_a_filtered_answer_fails_and_says_so(remote: Engine) -> None:
    remote.handler = lambda _: streamed(Stream(event(content="a"), event(finish="content_filter")))
    ended = remote.run()

    assert ended.end is End.FAILED
    assert "content filter" in str(ended.error)


@pytest.mark.parametrize("end", [End.CANCELLED, End.LOST])
def test_ending_a_job_closes_its_connection(remote: Engine, end: End) -> None:
    stream = Stream(event(content="a"), then=asyncio.Event())
    remote.handler = lambda _: streamed(stream)
    remote.submit()
    while not remote.told:
        time.sleep(0.005)
    remote.engine.cancel(JobId("another"), End.CANCELLED)
    remote.engine.cancel(JobId("job"), end)

    assert remote.ends.get(timeout=PATIENCE_S).end is end
    assert stream.is_closed.wait(PATIENCE_S)
    assert not remote.engine.is_busy


def test_a_job_that_is_left_before_its_first_step_ends_too(remote: Engine) -> None:
    remote.run()  # its loop runs
    loop = remote.engine._loop
    assert loop is not None

    def play() -> None:  # in one turn of the loop, as when it is busy
        remote.submit("late")
        remote.engine.cancel(JobId("late"), End.CANCELLED)

    loop.call_soon_threadsafe(play)

    assert remote.ends.get(timeout=PATIENCE_S).end is End.CANCELLED
    assert not remote.engine.is_busy
    assert len(remote.requests) == 1


def test_a_deadline_ends_a_job_even_between_two_tries(remote: Engine) -> None:
    remote.engine._asker._options = OPTIONS.model_copy(update={"retry_s": 60})
    remote.handler = lambda _: httpx2.Response(503, headers={"retry-after": "30"})

    assert remote.run(deadline_s=0.1).end is End.EXPIRED
    assert remote.run(deadline_s=-1).end is End.EXPIRED
    assert len(remote.requests) == 1


def test_stopping_gives_back_what_has_not_begun_and_fails_what_has(remote: Engine) -> None:
    waiting = asyncio.Event()
    remote.handler = lambda request: streamed(
        Stream(event(content="a") if len(remote.requests) == 1 else b":\n\n", then=waiting)
    )
    remote.submit("begun")
    while not remote.told:
        time.sleep(0.005)
    remote.submit("waits")
    while remote.engine.stats.slots_used < 2:
        time.sleep(0.005)
    remote.close()
    ends = {remote.ends.get(timeout=PATIENCE_S).end for _ in range(2)}

    assert ends == {End.FAILED, End.RELEASED}
    assert remote.run(job_id="late").end is End.RELEASED


def test_a_server_that_asks_for_peace_gets_it_from_all(remote: Engine) -> None:
    remote.engine._asker._options = OPTIONS.model_copy(update={"retry_s": 20})
    remote.handler = lambda _: httpx2.Response(429, headers={"retry-after": "15"})
    remote.submit(deadline_s=0.2)
    remote.ends.get(timeout=PATIENCE_S)

    assert 14 < remote.turns.take() <= 15
    assert remote.engine.stats.slots_used == OPTIONS.concurrency  # nobody shall count on a free one


def test_a_key_that_is_refused_is_told_once(remote: Engine) -> None:
    remote.handler = lambda _: httpx2.Response(401, json={"error": {"message": "bad key sk-1"}})
    for _ in range(2):
        error = remote.run().error
        assert isinstance(error, PacktrainError)
        assert "sk-1" not in error.message

    assert len(remote.faults) == 1
    with pytest.raises(ModelLoadFailed, match="BIG_KEY"):
        remote.engine.check()


def test_a_refusal_of_one_request_is_not_taken_for_one_of_the_key(remote: Engine) -> None:
    remote.handler = lambda request: httpx2.Response(200 if request.method == "GET" else 403, json={})
    assert remote.run().end is End.FAILED
    assert not remote.faults
    remote.engine.check()

    remote.handler = lambda _: httpx2.Response(403, json={})
    assert remote.run().end is End.FAILED
    assert len(remote.faults) == 1


# From a leased job to a request.


def leased(store: MemoryJobs) -> tuple[LeasedJob, Claim]:
    claim = store.claim((route_of(MODEL),), INSTANCE, NODE, lease_ms=60_000)
    assert claim is not None
    asked = JobSpec.model_validate_json(claim.spec_json)
    return LeasedJob(claim, asked, 1, clock=time.monotonic, on_news=lambda *_: None), claim


def starter(store: MemoryJobs, remote: Engine, turns: Turns) -> RemoteJobs:
    return RemoteJobs(
        store, MemoryBlobs(lambda: 0), remote.engine, OPTIONS, turns, model=MODEL, fleet=lambda: "f" * 16,
        clock=time.monotonic,
    )  # fmt: skip


def test_a_job_that_is_refused_gives_its_turn_back(remote: Engine) -> None:
    store, turns = MemoryJobs(lambda: 0, {MODEL: MODEL}), Turns(1, time.monotonic)
    jobs = starter(store, remote, turns)
    asked: tuple[dict[str, Any], ...] = ({"kind": "count"}, {"via": ["f" * 16]}, {"params": {"seed": 5}})
    for number, fields in enumerate(asked):
        store.submit(JobId(f"j{number}"), spec(**fields), max_waiting=9)
        assert jobs.wait_for_turn()
        job, claim = leased(store)
        if number < 2:
            with pytest.raises(InvalidRequest):
                jobs.start(job, claim)
        else:
            jobs.start(job, claim)
            assert job.seed == 5
            assert turns.take() > 0  # it has used its turn

    while not remote.requests:
        time.sleep(0.005)
    assert remote.requests[0].headers[HEADER] == "f" * 16


def test_a_job_of_which_readers_have_a_part_is_not_asked_again(remote: Engine) -> None:
    store = MemoryJobs(lambda: 0, {MODEL: MODEL})
    jobs = starter(store, remote, Turns(None, time.monotonic))
    store.submit(JobId("begun"), spec(), max_waiting=9)
    _, claim = leased(store)
    store.emit([(claim.job_id, claim.epoch, Chunk(0, "half", (), num_pieces=1))])
    store.release(claim.job_id, claim.epoch)
    job, claim = leased(store)
    with pytest.raises(RemoteFailed, match="was lost"):
        jobs.start(job, claim)
    ended = Ended(End.FAILED, error=RemoteFailed("x"))

    assert not remote.requests
    assert not job.may_fall_back(ended)
    assert job.outcome(ended, INSTANCE, NODE, RemoteServer(OPTIONS), threads=1).text == "half"


def test_a_server_that_is_away_is_nobodys_fault_yet(remote: Engine) -> None:
    remote.handler = lambda _: httpx2.ConnectError("refused")
    remote.engine.check()

    assert "no connection (refused)" in str(remote.run().error)
