"""What operators may ask of a node, and what it adds up to."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from packtrain.broker.node_wishes import NodeChange, NodeWish, changed, parse_label

pytestmark = pytest.mark.unit

GB = 10**9


def test_what_a_change_leaves_out_stays() -> None:
    wish = NodeWish(memory=4 * GB, cores=2, labels={"room": "attic"}, draining=True, resumed_ms=5)

    assert changed(wish, NodeChange(), now_ms=9) == wish


def test_zero_takes_a_budget_back_to_what_the_node_was_started_with() -> None:
    wish = changed(NodeWish(memory=4 * GB, cores=2), NodeChange(memory=0, cores=0), now_ms=9)

    assert (wish.memory, wish.cores) == (None, None)


def test_a_label_that_is_taken_away_hides_the_one_of_the_start() -> None:
    wish = changed(NodeWish(labels={"room": "attic"}), NodeChange(labels={"room": None}), now_ms=9)

    assert wish.labels == {"room": None}


@pytest.mark.parametrize("memory", [-1, 12, 12_000])
def test_a_budget_without_its_unit_is_refused(memory: int) -> None:
    with pytest.raises(ValidationError):
        NodeChange(memory=memory)


@pytest.mark.parametrize("text", ["attic", "room=", "=attic", "Room=attic", "room=at tic", "room=a=b", "r" * 64 + "=a"])
def test_a_label_that_could_not_stand_in_a_selector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="like room=attic"):
        parse_label(text)
