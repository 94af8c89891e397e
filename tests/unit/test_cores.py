"""Dealing cores: the policy, and the dealer that carries it out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.ids import InstanceId
from packtrain.workers.core_dealer import CoreDealer
from packtrain.workers.cores import HOLD_S, Claimant, deal

pytestmark = pytest.mark.unit

A, B, C = InstanceId("a"), InstanceId("b"), InstanceId("c")
LONG = 100.0  # seconds


def busy(threads: int = 1, since_s: float = LONG) -> Claimant:
    return Claimant(True, since_s, threads)


def idle(threads: int = 1, since_s: float = LONG) -> Claimant:
    return Claimant(False, since_s, threads)


def test_a_lone_active_instance_has_all_cores() -> None:
    assert deal(8, {A: busy(), B: idle(), C: idle()})[A] == 8


def test_active_instances_share_evenly() -> None:
    assert deal(8, {A: busy(8), B: busy(1)}) == {A: 4, B: 4}


def test_what_does_not_divide_stays_where_it_is() -> None:
    assert deal(3, {A: busy(1), B: busy(2)}) == {A: 1, B: 2}
    assert deal(3, {A: busy(2), B: busy(1)}) == {A: 2, B: 1}


def test_an_idle_instance_would_wake_with_its_part() -> None:
    assert deal(4, {A: idle(), B: idle()}) == {A: 4, B: 4}
    assert deal(4, {A: busy(4), B: idle()}) == {A: 4, B: 2}


def test_an_instance_that_just_went_idle_keeps_its_part_for_a_while() -> None:
    assert deal(2, {A: busy(1), B: idle(1, since_s=HOLD_S / 2)}) == {A: 1, B: 1}
    assert deal(2, {A: busy(1), B: idle(1, since_s=HOLD_S)})[A] == 2


def test_a_held_part_is_lost_at_once_to_an_instance_that_goes_to_work() -> None:
    claimants = {A: busy(1), B: idle(1, since_s=HOLD_S / 2), C: busy(1, since_s=0)}

    assert deal(4, claimants) == {A: 2, B: 1, C: 2}


def test_more_active_instances_than_cores_have_one_thread_each() -> None:
    assert deal(2, {A: busy(2), B: busy(1), C: busy(1)}) == {A: 1, B: 1, C: 1}


claimants_ = st.dictionaries(
    st.sampled_from([InstanceId(f"i{n}") for n in range(6)]),
    st.builds(Claimant, st.booleans(), st.floats(0, 1), st.integers(1, 16)),
)


@given(budget=st.integers(1, 16), claimants=claimants_)
def test_cores_are_neither_oversold_nor_left_over(budget: int, claimants: dict[InstanceId, Claimant]) -> None:
    shares = deal(budget, claimants)

    at_work = [shares[name] for name, claimant in claimants.items() if claimant.is_busy]
    assert shares.keys() == claimants.keys()
    assert min(shares.values(), default=1) >= 1
    assert sum(at_work) <= max(budget, len(at_work))
    settled = {n: Claimant(c.is_busy, c.since_s + HOLD_S, c.threads) for n, c in claimants.items()}
    if at_work:
        assert sum(deal(budget, settled)[n] for n, c in claimants.items() if c.is_busy) == max(budget, len(at_work))


@given(budget=st.integers(1, 16), claimants=claimants_)
def test_dealing_again_moves_nothing(budget: int, claimants: dict[InstanceId, Claimant]) -> None:
    first = deal(budget, claimants)

    again = deal(budget, {n: Claimant(c.is_busy, c.since_s, first[n]) for n, c in claimants.items()})

    assert {n: s for n, s in again.items() if claimants[n].is_busy} == {
        n: s for n, s in first.items() if claimants[n].is_busy
    }


@dataclass
class FakePlayer:
    is_busy: bool = False
    is_deaf: bool = False
    told: list[int] = field(default_factory=list)

    def set_threads(self, count: int) -> bool:
        if not self.is_deaf:
            self.told.append(count)
        return not self.is_deaf


class Table:
    """A dealer of two cores with two players, on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.dealer = CoreDealer(2, clock=lambda: self.now)
        self.a, self.b = FakePlayer(), FakePlayer()
        for name, player in ((A, self.a), (B, self.b)):
            self.dealer.add(name, player, self.dealer.next_share())
        self.dealer.look()

    def look(self, *, after_s: float = 0) -> None:
        self.now += after_s
        self.dealer.look()


def test_the_dealer_speaks_only_of_changes() -> None:
    table = Table()
    for _ in range(3):
        table.look()
    assert table.a.told == table.b.told == []  # nobody works, so each may wake with both

    table.a.is_busy = True
    table.look()
    table.b.is_busy = True
    table.look(after_s=1)

    assert (table.a.told, table.b.told) == ([1], [1])


def test_the_dealer_gives_all_cores_back_after_the_hold() -> None:
    table = Table()
    table.a.is_busy = table.b.is_busy = True
    table.look()

    table.b.is_busy = False
    table.look(after_s=1)
    assert table.a.told == [1]
    table.look(after_s=2 * HOLD_S)

    assert table.a.told == [1, 2]


def test_the_cores_of_a_gone_instance_are_free_at_once() -> None:
    table = Table()
    table.a.is_busy = table.b.is_busy = True
    table.look()

    table.dealer.remove(B)
    table.look()

    assert table.a.told == [1, 2]


def test_who_could_not_be_told_is_told_again() -> None:
    table = Table()
    table.a.is_busy = table.b.is_busy = table.a.is_deaf = True
    table.look()
    table.a.is_deaf = False

    table.look()

    assert table.a.told == [1]


def test_a_newcomer_begins_with_the_part_that_is_left_for_it() -> None:
    table = Table()
    assert table.dealer.next_share() == 2

    table.a.is_busy = True
    table.look()

    assert table.dealer.next_share() == 1
