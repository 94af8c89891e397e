"""One suite for every way to a fleet: the client's interface is the same over redis:// and over http://."""

from __future__ import annotations

import asyncio
import signal
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from packtrain.broker.api_keys import ApiKeys
from packtrain.broker.connection import connect
from packtrain.broker.ids import JobId, ModelId, new_job_id
from packtrain.broker.job_spec import JobSpec
from packtrain.client import (
    AsyncPacktrain,
    BrokerUnavailable,
    IdempotencyConflict,
    InstanceState,
    Job,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobState,
    Packtrain,
    PacktrainError,
    PromptTooLong,
    QueueFull,
    ResultTimeout,
    SetupError,
    TryLater,
    UnknownJob,
    UnknownModel,
    UnknownNode,
)
from packtrain.client.cli.main import app, exit_code
from packtrain.client.opening import open_async_transport, open_transport
from tests.support.factories import spec
from tests.support.fleets import Fleet, eventually, scripted_fleet, until_first_text
from tests.support.gateways import Gateway, gateway

pytestmark = pytest.mark.contract

MODELS: dict[str, dict[str, Any]] = {
    "echo": {"n_slots": 16, "n_ctx": 512, "step_ms": 1},
    "slow": {"n_slots": 2, "n_ctx": 512, "step_ms": 20},
    "leaving": {},
}
#: Of one user, below what a `map` has in flight.
MAX_WAITING_USER = 80


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with scripted_fleet(tmp_path_factory.mktemp("home"), MODELS) as running:
        yield running


@pytest.fixture(scope="module")
def door(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with gateway(fleet.url, folder, PACKTRAIN_MAX_WAITING_USER=str(MAX_WAITING_USER)) as running:
        yield running


@pytest.fixture(params=["redis", "http"])
def url(request: pytest.FixtureRequest, fleet: Fleet, door: Gateway, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PACKTRAIN_MAX_WAITING_USER", str(MAX_WAITING_USER))
    return fleet.url if request.param == "redis" else door.url


@pytest.fixture
def client(url: str) -> Iterator[Packtrain]:
    with Packtrain(url) as fleet:
        yield fleet


def runs(main: Callable[[AsyncPacktrain], Coroutine[Any, Any, None]], url: str) -> None:
    """Run a coroutine with an asyncio client of its own."""

    async def run() -> None:
        async with AsyncPacktrain(url) as fleet:
            await main(fleet)

    asyncio.run(run())


def test_an_answer_comes_back(client: Packtrain) -> None:
    result = client.generate("echo", "hello", max_tokens=4, seed=7)

    assert (result.text, result.finish_reason, result.seed, result.node) == ("olle", "length", 7, "n1")
    assert result.usage.completion_tokens == 4
    assert result.receipt


def test_text_comes_in_pieces(client: Packtrain) -> None:
    pieces = list(client.stream("slow", "abcdefghijkl"))

    assert "".join(pieces) == "lkjihgfedcba"
    assert len(pieces) > 3


def test_what_comes_of_a_job_can_be_read_from_any_place(client: Packtrain, url: str) -> None:
    job = client.submit("slow", "abcdefghijkl")
    job.result()
    transport = open_transport(url)
    events = transport.events({job.id: "0"}, block_s=0)

    assert "".join(event.text for event in events) == "lkjihgfedcba"
    assert events[-1].end is JobState.SUCCEEDED
    for index, event in enumerate(events):
        assert transport.events({job.id: event.id}, block_s=0) == events[index + 1 :]
    transport.close()


def test_leaving_a_stream_cancels_the_job(client: Packtrain) -> None:
    with client.stream("slow", "!long") as stream:
        for _ in stream:
            break

    eventually(lambda: stream.job.status().state is JobState.CANCELLED, "the job to be cancelled")


def test_many_prompts_at_once_come_back_in_order(client: Packtrain) -> None:
    prompts = [f"prompt {number}" for number in range(100)]

    assert [result.text for result in client.map("echo", prompts)] == [prompt[::-1] for prompt in prompts]


def test_a_prompt_that_cannot_be_takes_its_place_among_the_results(client: Packtrain) -> None:
    good, bad, last = client.map("echo", ["a", "x" * 2000, "b"], on_error="return")

    assert (good.text, last.text) == ("a", "b")
    assert isinstance(bad.error, PromptTooLong)


def test_choices_embeddings_and_counts(client: Packtrain) -> None:
    assert [result.text for result in client.choices("echo", "abc", 3, seed=1)] == ["cba"] * 3
    vectors = client.embed("echo", ["one", "two", "one"])
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(number**2 for number in vectors[0]) == pytest.approx(1)
    assert client.count_tokens("echo", "four") == 4


def test_logprobs_reasoning_and_timings_arrive_whole(client: Packtrain) -> None:
    job = client.submit("echo", "abc", logprobs=2)
    deltas = list(job.deltas())

    result = job.result()
    assert [entry for delta in deltas for entry in delta.logprobs] == list(result.logprobs) != []
    assert result.timings.run_ms > 0


def test_a_job_is_found_explained_and_cancelled_by_its_id(client: Packtrain) -> None:
    job = client.submit("slow", "!long")
    until_first_text(job)

    again = client.job(job.id)
    assert again.status().state is JobState.RUNNING
    assert "it runs on n1" in again.explain().reason
    assert job.id in [status.id for status in client.jobs(5)]
    assert again.cancel() in (JobState.RUNNING, JobState.CANCELLED)
    with pytest.raises(JobCancelled):
        again.result(timeout=10)
    assert again.cancel() is JobState.CANCELLED


def test_an_answer_is_verified(client: Packtrain) -> None:
    job = client.submit("echo", "abc", deterministic=True)
    job.result()

    assert client.verify(job.id, timeout=30).is_equal


def test_the_same_key_is_the_same_job(client: Packtrain, url: str) -> None:
    job = client.submit("echo", "abc", idempotency_key=f"once {url}")

    assert client.submit("echo", "abc", idempotency_key=f"once {url}").id == job.id
    with pytest.raises(IdempotencyConflict) as caught:
        client.submit("echo", "other", idempotency_key=f"once {url}")
    assert caught.value.data == {"job_id": job.id}


def test_errors_are_the_same_with_the_same_values(client: Packtrain) -> None:
    with pytest.raises(UnknownModel) as unknown:
        client.submit("nobody", "x")
    assert unknown.value.data == {"model": "nobody", "known": sorted(MODELS)}
    with pytest.raises(PromptTooLong) as too_long:
        client.generate("echo", "x" * 2000)
    assert too_long.value.data == {"model": "echo", "num_tokens": 2000, "limit": too_long.value.data["limit"]}
    with pytest.raises(JobFailed):
        client.generate("echo", "!fail")
    with pytest.raises(JobExpired):
        client.generate("slow", "!long", expires_in=0.3)
    for call in (Packtrain.explain, Packtrain.verify):
        with pytest.raises(UnknownJob):
            call(client, "0" * 32)
    with pytest.raises(UnknownJob):
        client.job("0" * 32).cancel()
    with pytest.raises(UnknownJob):
        list(client.job("no id/at all?").stream())
    with pytest.raises(UnknownModel):
        client.load("nobody")
    with pytest.raises(UnknownNode):
        client.drain_node("nobody")
    with pytest.raises(UnknownNode):
        client.pull("a/b", "c.gguf", node="nobody")
    assert client.pull_status("0" * 32) is None


def test_a_wait_ends_after_its_timeout_and_the_job_goes_on(client: Packtrain) -> None:
    job = client.submit("slow", "!long")
    begin = time.monotonic()
    with pytest.raises(ResultTimeout) as caught:
        job.result(timeout=0.3)

    assert caught.value.data["job_id"] == job.id
    assert 0.3 <= time.monotonic() - begin < 5
    assert not job.status().state.is_terminal
    job.cancel()


def test_a_user_with_too_many_jobs_hears_when_to_come_back(client: Packtrain, url: str) -> None:
    user = f"crowd-{urlsplit(url).scheme}"

    def submit(count: int) -> None:
        for _ in range(count):
            client.submit("slow", "!long", user=user, lane="bulk", stream=False)

    with pytest.raises(QueueFull) as caught:
        submit(MAX_WAITING_USER + 5)

    assert caught.value.data["limit"] == MAX_WAITING_USER
    assert caught.value.data["retry_after_s"] > 0
    assert sum(client.waiting().values()) >= MAX_WAITING_USER
    for status in client.jobs(MAX_WAITING_USER + 20):
        if status.user == user:
            client.job(status.id).cancel()


def test_models_are_loaded_and_unloaded(client: Packtrain) -> None:
    client.load("leaving")
    eventually(lambda: state_of(client, "leaving") is InstanceState.READY, "the model to be loaded")
    client.unload("leaving")
    eventually(lambda: state_of(client, "leaving") is None, "the model to be unloaded")
    assert {info.id for info in client.models()} == set(MODELS)


def state_of(client: Packtrain, model: str) -> InstanceState | None:
    alive = [i.state for i in client.instances() if i.model == model and not i.state.is_terminal]
    return alive[0] if alive else None


def test_nodes_are_changed(client: Packtrain) -> None:
    assert [beat.node for beat in client.nodes()] == ["n1"]

    wish = client.set_node("n1", labels={"room": "attic", "gpu": None})
    assert wish.labels == {"room": "attic", "gpu": None}
    assert client.drain_node("n1").draining
    assert not client.resume_node("n1").draining


def test_records_and_requests_are_read_as_they_are(client: Packtrain, url: str) -> None:
    transport = open_transport(url)
    asked = spec("hello", model="echo", params={"max_tokens": 3, "stop": ["x"]}, lane="bulk")
    job_id = new_job_id()

    first, second = (transport.submit(job_id, asked) for _ in range(2))
    assert (first.job_id, first.model, first.is_new, second.is_new) == (job_id, "echo", True, False)
    assert transport.spec(job_id) == JobSpec.model_validate(asked.model_dump())
    assert transport.spec(JobId("0" * 32)) is None
    client.job(job_id).result()
    found = transport.statuses([job_id, JobId("0" * 32)])
    assert found == {job_id: transport.status(job_id), JobId("0" * 32): None}
    assert transport.set_desired(ModelId("echo"), replicas=1, unload=False).replicas == 1
    transport.set_desired(ModelId("echo"), replicas=0, unload=False)
    assert transport.waits() == {}
    transport.close()


def test_tasks_wait_and_read_at_once(url: str) -> None:
    async def main(fleet: AsyncPacktrain) -> None:
        async def read(number: int) -> str:
            async with await fleet.stream("echo", f"stream {number} " * 9) as stream:
                return "".join([text async for text in stream])

        texts = await asyncio.gather(*(read(number) for number in range(24)))
        assert texts == [(f"stream {number} " * 9)[::-1] for number in range(24)]
        prompts = [f"prompt {number}" for number in range(40)]
        assert [result.text async for result in fleet.map("echo", prompts)] == [prompt[::-1] for prompt in prompts]
        assert [result.text for result in await fleet.choices("echo", "ab", 2)] == ["ba", "ba"]
        with pytest.raises(ResultTimeout):
            await (await fleet.submit("slow", "!long", expires_in=5)).result(timeout=0.2)
        with pytest.raises(UnknownModel):
            await fleet.generate("nobody", "x")
        with pytest.raises(UnknownJob):
            await fleet.job("0" * 32).result()

    runs(main, url)


def test_a_task_that_leaves_its_stream_cancels_the_job(url: str) -> None:
    async def main(fleet: AsyncPacktrain) -> None:
        async with await fleet.stream("slow", "!long") as stream:
            async for _ in stream:
                break
        with pytest.raises(JobCancelled):
            await stream.job.result(timeout=10)

    runs(main, url)


def test_threads_share_a_client(client: Packtrain) -> None:
    texts: dict[int, str] = {}

    def read(number: int) -> None:
        texts[number] = "".join(client.stream("echo", f"thread {number}"))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert texts == {number: f"thread {number}"[::-1] for number in range(24)}


# --- what can only happen over HTTP ----------------------------------------------------------------------------------


@contextmanager
def restarts(fleet: Fleet, folder: Path, rounds: int) -> Iterator[str]:
    """The URL of a gateway that is killed and started again, some times."""
    with gateway(fleet.url, folder) as first:
        port, url = urlsplit(first.url).port, first.url
        stop = threading.Event()

        def kill_and_start() -> None:
            running = first.process
            for number in range(rounds):
                time.sleep(1)
                running.send_signal(signal.SIGKILL)
                running.wait()
                below = folder / str(number)
                below.mkdir()
                with gateway(fleet.url, below, PACKTRAIN_HTTP_PORT=str(port)) as another:
                    if number + 1 == rounds:
                        stop.wait(60)
                    else:
                        time.sleep(1)
                        another.process.send_signal(signal.SIGKILL)
                        another.process.wait()

        thread = threading.Thread(target=kill_and_start)
        thread.start()
        try:
            yield url
        finally:
            stop.set()
            thread.join(60)


def test_a_gateway_that_is_killed_loses_and_doubles_no_token(fleet: Fleet, tmp_path: Path) -> None:
    prompt = "".join(chr(ord("a") + number % 26) for number in range(240))

    async def read_too(url: str) -> str:
        async with AsyncPacktrain(url) as client, await client.stream("slow", prompt) as stream:
            return "".join([text async for text in stream])

    with restarts(fleet, tmp_path, rounds=2) as url:
        also: list[str] = []
        thread = threading.Thread(target=lambda: also.append(asyncio.run(read_too(url))))
        thread.start()
        with Packtrain(url) as client:
            events = [text for text in client.stream("slow", prompt)]  # noqa: C416  (as users read it)
        thread.join(60)

    assert "".join(events) == prompt[::-1]
    assert also == [prompt[::-1]]


def test_a_gateway_that_shall_end_lets_go_of_readers_who_can_go_on_elsewhere(fleet: Fleet, tmp_path: Path) -> None:
    job = fleet.client.submit("slow", "!long", max_tokens=450)
    until_first_text(job)
    with gateway(fleet.url, tmp_path, PACKTRAIN_DRAIN_S="60") as running:
        with running.http.stream("GET", f"/packtrain/v1/jobs/{job.id}/events") as response:
            pieces = response.iter_text()
            next(pieces)
            running.process.terminate()
            rest = "".join(pieces)
        running.process.wait(20)

    assert "event: error" not in rest
    assert not job.status().state.is_terminal
    job.cancel()


def test_a_gateway_that_is_not_there_says_so(tmp_path: Path) -> None:
    with Packtrain("http://127.0.0.1:9") as client, pytest.raises(BrokerUnavailable, match="no gateway answers"):
        client.models()


def test_a_reader_of_one_job_asks_twice_and_then_only_listens(door: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed is what makes HTTP cheap: hundreds of events, a handful of requests."""
    transport = open_transport(door.url)
    sent: list[str] = []
    http: Any = transport._http  # type: ignore[attr-defined]
    really = http.send

    def counted(request: Any, **options: Any) -> Any:
        sent.append(request.url.path)
        return really(request, **options)

    monkeypatch.setattr(http, "send", counted)
    client = Packtrain(transport=transport)
    pieces = list(client.stream("slow", "x" * 200))
    client.close()

    assert "".join(pieces) == "x" * 200
    assert len(pieces) > 50
    assert len(sent) < 8, sent


@contextmanager
def https(folder: Path) -> Iterator[tuple[str, Path]]:
    """A server that signs for itself and knows one route, and its certificate."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    write_certificate(key, cert)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"nodes":[]}' if self.path == "/packtrain/v1/nodes" else b""
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}", cert
        finally:
            server.shutdown()
            thread.join()


def write_certificate(key_file: Path, cert_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway of a test")])
    now = datetime.now(UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = (
        builder.not_valid_before(now).not_valid_after(now + timedelta(hours=1)).add_extension(host, critical=False)
    )
    cert_file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def test_a_certificate_is_checked_and_may_be_of_an_authority_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with https(tmp_path) as (url, cert):
        with Packtrain(url) as stranger, pytest.raises(SetupError, match="PACKTRAIN_CA"):
            stranger.nodes()
        monkeypatch.setenv("PACKTRAIN_CA", str(cert))
        with Packtrain(url) as client:
            assert client.nodes() == []


def test_an_asyncio_transport_is_opened_by_the_same_urls(url: str) -> None:
    async def main() -> None:
        transport = open_async_transport(url)
        assert await transport.events({}, block_s=1) == []
        assert (url.startswith("http")) == transport.blocking.url.startswith("http")
        await transport.close()

    asyncio.run(main())


@contextmanager
def api_keys(fleet: Fleet, door: Gateway) -> Iterator[dict[str, str]]:
    """Secrets by name; afterwards the gateway lets everybody in again."""
    redis = connect(fleet.url, name="test")
    store = ApiKeys(redis)
    found = {name: store.create(name)[1] for name in ("alice", "bob")}
    found["root"] = store.create("root", is_admin=True)[1]
    found["limited"] = store.create("limited", concurrent=1)[1]
    eventually(lambda: door.http.get("/packtrain/v1/nodes").status_code == 401, "the gateway to know of the keys")
    try:
        yield found
    finally:
        for name in found:
            store.revoke(name)
        redis.close()
        eventually(lambda: door.http.get("/packtrain/v1/nodes").status_code == 200, "the gateway to forget them")


def test_a_key_sees_and_touches_the_jobs_of_its_own_user_alone(fleet: Fleet, door: Gateway) -> None:
    with api_keys(fleet, door) as keys, ExitStack() as stack:
        alice, bob, root, limited = (
            stack.enter_context(Packtrain(door.url, api_key=keys[name])) for name in ("alice", "bob", "root", "limited")
        )
        job = alice.submit("slow", "!long", user="bob", idempotency_key="mine")
        assert job.status().user == "alice"
        assert bob.submit("slow", "!long", idempotency_key="mine").cancel()
        asks: list[Callable[[Job], object]] = [
            Job.status,
            Job.explain,
            Job.cancel,
            Job.result,
            lambda j: list(j.stream()),
        ]
        for ask in asks:
            with pytest.raises(UnknownJob):
                ask(bob.job(job.id))
        assert job.id not in [status.id for status in bob.jobs(100)]
        assert job.id in [status.id for status in root.jobs(100)]
        assert root.job(job.id).cancel() is not None
        with pytest.raises(SetupError, match="may not administrate"):
            alice.load("echo")
        for wrong in ("", "pt-wrong"):
            with Packtrain(door.url, api_key=wrong) as nobody, pytest.raises(SetupError, match="API key"):
                nobody.models()

        assert [limited.generate("echo", "abc").text for _ in range(5)] == ["cba"] * 5
        running = limited.submit("slow", "!long")
        with pytest.raises(TryLater, match="under way") as caught:
            limited.submit("echo", "x")
        assert caught.value.data["retry_after_s"] == 1
        running.cancel()
        with pytest.raises(JobCancelled):
            running.result(timeout=20)
        assert limited.generate("echo", "x").text == "x"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["run", "echo", "hello"], 0),
        (["embed", "echo", "hello"], 0),
        (["models"], 0),
        (["ps"], 0),
        (["nodes"], 0),
        (["jobs"], 0),
        (["jobs", "show", "0" * 32], 2),
        (["run", "nobody", "hello"], 2),
    ],
)
def test_the_command_line_works_over_either(
    url: str, command: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACKTRAIN_URL", url)
    result = CliRunner().invoke(app, command)

    assert (exit_code(result.exception) if isinstance(result.exception, PacktrainError) else result.exit_code) == code


@pytest.mark.parametrize("command", ["journal", "replay", "invite", "plan"])
def test_commands_that_need_the_broker_say_so(door: Gateway, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKTRAIN_URL", door.url)
    result = CliRunner().invoke(app, [command])

    assert isinstance(result.exception, SetupError)
    assert "needs the broker itself" in str(result.exception)
