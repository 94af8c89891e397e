"""What the engine does for the dealing of cores: it takes a number of threads, and tells when it works and rests."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

import pytest

from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.engine import inbox
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import Ended, SequenceRequest

pytestmark = pytest.mark.unit


def request(on_end: SimpleQueue[Ended], job_id: str = "j") -> SequenceRequest:
    return SequenceRequest(JobId(job_id), tuple(b"ab"), SamplingParams(), 0, 9, lambda _: None, on_end.put)


def test_threads_are_set_before_the_next_step_and_only_when_they_change() -> None:
    backend = ScriptedBackend()
    engine = Engine(backend, clock=time.monotonic)
    engine.step()
    assert backend.threads == []

    engine.set_threads(2)
    engine.step()
    engine.set_threads(2)
    engine.step()

    assert backend.threads == [2]


def test_going_to_work_and_coming_to_rest_are_told_at_once() -> None:
    told: SimpleQueue[bool] = SimpleQueue()
    engine = Engine(ScriptedBackend(), clock=time.monotonic, on_activity=lambda: told.put(engine.is_busy))
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    assert told.get(timeout=10) is False

    engine.submit(request(SimpleQueue()))

    assert told.get(timeout=10) is True
    assert told.get(timeout=10) is False
    engine.stop()
    thread.join(10)


def test_successors_of_sequences_that_ended_together_are_computed_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "GATHER_S", 5.0)  # a busy machine sleeps longer than it was told to
    monkeypatch.setattr(inbox, "MAX_GATHER_S", 10.0)
    ends: SimpleQueue[Ended] = SimpleQueue()
    backend = ScriptedBackend(n_slots=4)
    engine = Engine(backend, clock=time.monotonic)
    for number in range(3):
        engine.submit(request(ends, job_id=f"first {number}"))
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    for _ in range(3):
        ends.get(timeout=10)
    num_steps = len(backend.steps)

    for number in range(3):
        time.sleep(0.003)  # as slots of a fleet claim their next jobs
        engine.submit(request(ends, job_id=f"second {number}"))
    for _ in range(3):
        ends.get(timeout=10)

    engine.stop()
    thread.join(10)
    assert [row.seq_id for row in backend.steps[num_steps]] == [0, 1, 2]


def test_one_that_follows_alone_does_not_wait_for_long() -> None:
    ends: SimpleQueue[Ended] = SimpleQueue()
    engine = Engine(ScriptedBackend(), clock=time.monotonic)
    for number in range(2):
        engine.submit(request(ends, job_id=f"first {number}"))
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    for _ in range(2):
        ends.get(timeout=10)

    engine.submit(request(ends, job_id="only"))

    assert ends.get(timeout=10).num_output > 0
    engine.stop()
    thread.join(10)
