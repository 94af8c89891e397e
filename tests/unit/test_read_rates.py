"""How fast a node reads the weights of a model, by what it has shown and by what it measured at its start."""

from __future__ import annotations

import pytest

from packtrain.broker.placement.read_rates import LAYER_S, read_rate
from tests.support.factories import model_info, node_beat

pytestmark = pytest.mark.unit

RATES = {"Q4_0": 10e9, "Q4_K": 20e9, "IQ4_XS": 5e9, "F16": 16e9}


def test_what_a_model_has_shown_counts_before_what_was_measured() -> None:
    info = model_info(quantization="Q4_0", layer_bytes=(10**9,) * 4)

    assert read_rate(node_beat(weights_per_s=7e9, read_rates=RATES), info) == 7e9


@pytest.mark.parametrize(("quantization", "rate"), [("Q4_K_M", 20e9), ("Q4_0", 10e9), ("iq4_xs", 5e9), ("F16", 16e9)])
def test_the_type_of_the_weights_tells_the_rate(quantization: str, rate: float) -> None:
    large = model_info(quantization=quantization, layer_bytes=(10**12,) * 4)

    assert read_rate(node_beat(read_rates=RATES), large) == pytest.approx(rate, rel=1e-3)


def test_small_layers_are_read_slower() -> None:
    tiny = model_info(quantization="F16", layer_bytes=(round(16e9 * LAYER_S),) * 30)

    assert read_rate(node_beat(read_rates=RATES), tiny) == pytest.approx(8e9)


def test_what_is_not_known_is_not_told() -> None:
    info = model_info(quantization="Q3_K_S", layer_bytes=(10**9,) * 4)

    assert read_rate(node_beat(read_rates=RATES), info) == 0
    assert (
        read_rate(node_beat(read_rates=RATES), info.model_copy(update={"quantization": "Q4_0", "layer_bytes": ()})) == 0
    )
    assert read_rate(node_beat(), info) == 0
