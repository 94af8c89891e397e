"""When a request would begin: what a caller with `max_wait` goes by."""

from __future__ import annotations

import pytest

from packtrain.broker.explain import Explanation
from packtrain.broker.states import InstanceState, JobState
from packtrain.client.gateway.patience import load_s
from tests.support.factories import MIB, instance_beat, model_info

pytestmark = pytest.mark.unit

NOW_MS = 1_000_000
WAITING = Explanation(id="j", state=JobState.QUEUED, reason="", model="tiny", user="u", lane="bulk", now_ms=NOW_MS)
MODELS = [model_info("tiny", required_bytes=1000 * MIB)]


def test_a_model_that_is_not_loaded_takes_as_long_as_its_size() -> None:
    assert load_s(WAITING, MODELS, [], NOW_MS) == pytest.approx(2 + 1000 * MIB / 500e6)


def test_one_that_comes_up_takes_the_rest_of_that_and_no_less_than_nothing() -> None:
    loading = instance_beat(state=InstanceState.LOADING, requested_ms=NOW_MS - 3000)
    late = instance_beat(state=InstanceState.LOADING, requested_ms=NOW_MS - 60_000)

    assert load_s(WAITING, MODELS, [loading], NOW_MS) == pytest.approx(2 + 1000 * MIB / 500e6 - 3)
    assert load_s(WAITING, MODELS, [late], NOW_MS) == 0


def test_one_that_is_ready_or_unknown_has_no_load_to_wait_for() -> None:
    assert load_s(WAITING, MODELS, [instance_beat()], NOW_MS) is None
    assert load_s(WAITING, [], [], NOW_MS) is None


def test_an_instance_that_has_ended_is_none() -> None:
    ended = instance_beat(state=InstanceState.STOPPED, requested_ms=NOW_MS - 60_000)

    assert (load_s(WAITING, MODELS, [ended], NOW_MS) or 0) > 4
