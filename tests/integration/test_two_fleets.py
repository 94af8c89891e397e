"""Two fleets that are each other's remote, each with a gateway of its own."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from packtrain.broker.errors import InvalidParameter, JobCancelled, PromptTooLong, RemoteFailed
from packtrain.broker.states import JobState
from tests.support.fleets import Fleet, eventually, scripted_fleet, until_first_text
from tests.support.gateways import gateway

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Pair:
    """Both offer `local` and its remote form `far`; `round` is the other's `round`, and nobody's own."""

    here: Fleet
    there: Fleet


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    ports = (free_port(), free_port())
    fleets: list[Fleet] = []
    with ExitStack() as stack:
        for number, port in enumerate(ports):
            home = tmp_path_factory.mktemp(f"fleet{number}")
            url = json.dumps(f"http://127.0.0.1:{ports[1 - number]}/v1")
            home.joinpath("packtrain.toml").write_text(
                f'[models.far.remote]\nurl = {url}\nmodel = "local"\nretry_s = 2\n'
                f"[models.round.remote]\nurl = {url}\nconcurrency = 1\nretry_s = 2\n"
            )
            local = {"n_slots": 2, "step_ms": 10}
            fleet = stack.enter_context(scripted_fleet(home, {"local": local}))
            stack.enter_context(gateway(fleet.url, home, PACKTRAIN_HTTP_PORT=str(port)))
            fleets.append(fleet)
        yield Pair(*fleets)


def test_each_may_have_the_other_answer(pair: Pair) -> None:
    for one, other in ((pair.here, pair.there), (pair.there, pair.here)):
        job = one.client.submit("far", "hello there")
        assert "".join(job.stream()) == "ereht olleh"
        result = job.result()
        (computed,) = other.client.jobs(1)

        assert (computed.model, computed.state) == ("local", JobState.SUCCEEDED)
        assert result.usage.completion_tokens == 11
        assert result.usage.prompt_tokens == computed.outcome.usage.prompt_tokens > 0  # type: ignore[union-attr]


def test_cancelling_here_cancels_there(pair: Pair) -> None:
    job = pair.here.client.submit("far", "!long", max_tokens=400)
    until_first_text(job)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout=10)

    eventually(lambda: pair.there.client.jobs(1)[0].state is JobState.CANCELLED, "the other fleet to cancel it", 5)


def test_a_refusal_there_is_one_here(pair: Pair) -> None:
    with pytest.raises(PromptTooLong, match="one slot of 'local' holds"):
        pair.here.client.generate("far", "x" * 3000, timeout=20)
    with pytest.raises(RemoteFailed, match=r"broke off|could not answer"):
        pair.here.client.generate("far", "!fail", timeout=20)


def test_a_job_that_would_go_round_for_ever_ends_with_the_reason(pair: Pair) -> None:
    begin = time.monotonic()
    with pytest.raises(InvalidParameter, match="each other's remote"):
        pair.here.client.generate("round", "and round", timeout=30)

    assert time.monotonic() - begin < 20
    assert [job.model for job in pair.there.client.jobs(1)] == ["round"]
    # It came back once, and was refused before it waited.
    assert [job.state for job in pair.here.client.jobs(1)] == [JobState.FAILED]
