"""When a dead child is started again, and when no more."""

from __future__ import annotations

import pytest

from packtrain.client.cli.restarts import RestartPolicy

pytestmark = pytest.mark.unit


def delays(policy: RestartPolicy, *lives_s: float) -> list[float | None]:
    return [policy.died(started_s=1000.0, now_s=1000.0 + lived) for lived in lives_s]


def test_waits_double_from_one_second() -> None:
    assert delays(RestartPolicy(), 1, 1, 1, 1) == [1, 2, 4, 8]


def test_wait_never_exceeds_thirty_seconds() -> None:
    assert delays(RestartPolicy(), *[20] * 8) == [1, 2, 4, 8, 16, 30, 30, 30]


def test_wait_stays_bounded_after_a_thousand_deaths() -> None:
    assert delays(RestartPolicy(), *[20] * 2000)[-1] == 30


def test_fifth_fast_death_in_a_row_gives_up() -> None:
    assert delays(RestartPolicy(), *[0.1] * 5) == [1, 2, 4, 8, None]


def test_one_longer_life_forgives_the_fast_deaths_before_it() -> None:
    assert None not in delays(RestartPolicy(), 1, 1, 1, 1, 15, 1, 1, 1, 1)


def test_longer_life_does_not_shorten_the_wait() -> None:
    assert delays(RestartPolicy(), 1, 1, 15) == [1, 2, 4]


def test_sixty_healthy_seconds_start_the_waits_anew() -> None:
    assert delays(RestartPolicy(), 1, 1, 60, 1) == [1, 2, 1, 2]


def test_life_of_exactly_ten_seconds_is_not_fast() -> None:
    policy = RestartPolicy()

    delays(policy, 1, 1, 10)

    assert policy.num_fast == 0
