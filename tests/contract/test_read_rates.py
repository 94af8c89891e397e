"""The measurement of how fast weights are read, in the real library."""

from __future__ import annotations

import sys

import pytest

from packtrain.workers.device_probe import DeviceWatch
from tests.support.fleets import eventually

pytestmark = pytest.mark.contract


def test_a_probe_measures_each_type_once() -> None:
    from packtrain.workers.backends.llama_cpp_rates import TYPES

    watch = DeviceWatch((sys.executable, "-m", "packtrain.workers.device_probe"), rates_with=1)
    watch.poll(0)
    eventually(lambda: watch.poll(1), "the probe to answer", 60)

    assert watch.rates.keys() == TYPES.keys()
    assert all(1e8 < rate < 1e12 for rate in watch.rates.values())
    assert "x86_64" in watch.features or "aarch64" in watch.features
    watch.close()
