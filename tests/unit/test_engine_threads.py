"""What the engine does for the dealing of cores: it takes a number of threads, and tells when it works and rests."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

import pytest

from packtrain.broker.ids import JobId
from packtrain.broker.messages import SamplingParams
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import Ended, SequenceRequest

pytestmark = pytest.mark.unit


def request(on_end: SimpleQueue[Ended]) -> SequenceRequest:
    return SequenceRequest(JobId("j"), tuple(b"ab"), SamplingParams(), 0, 9, lambda _: None, on_end.put)


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
