"""The memories of a node, as a fake probe tells them, for there is no GPU here."""

from __future__ import annotations

import sys
import time

import pytest

from packtrain.broker.beats import DeviceMemory
from packtrain.workers.device_probe import AGAIN_S, NUM_RATES, DeviceWatch, Found
from packtrain.workers.devices import FoundDevice, memories
from tests.support.factories import node_beat

pytestmark = pytest.mark.unit

GIB = 1024**3
CPU = FoundDevice(name="CPU", description="AMD EPYC", type=0, free=10 * GIB, total=16 * GIB)
CUDA = FoundDevice(name="CUDA0", description="NVIDIA RTX 4090", type=1, free=20 * GIB, total=24 * GIB)
RAM = DeviceMemory(kind="ram", name="RAM", total=16 * GIB, free=10 * GIB)


def test_a_machine_without_a_gpu_has_one_memory() -> None:
    assert memories(16 * GIB, 10 * GIB, [CPU]) == (RAM,)


def test_each_gpu_has_a_memory_of_its_own() -> None:
    second = CUDA.model_copy(update={"name": "CUDA1"})

    found = memories(16 * GIB, 10 * GIB, [CUDA, second, CPU])

    assert found[0] == RAM
    assert [(d.kind, d.name, d.free) for d in found[1:]] == [
        ("gpu", "CUDA0 (NVIDIA RTX 4090)", 20 * GIB),
        ("gpu", "CUDA1 (NVIDIA RTX 4090)", 20 * GIB),
    ]


@pytest.mark.parametrize(
    "gpu", [FoundDevice(name="Metal", description="Apple M2", type=1), FoundDevice(name="Vulkan0", type=2)]
)
def test_memory_that_is_shared_with_a_gpu_is_one(gpu: FoundDevice) -> None:
    (only,) = memories(16 * GIB, 10 * GIB, [gpu, CPU])

    assert (only.unified, only.total, only.free) == (True, 16 * GIB, 10 * GIB)
    assert gpu.name in only.name


def said(device: FoundDevice) -> str:
    """By a probe."""
    return Found(devices=(device,), features="x86_64 AVX2").model_dump_json()


def probe(code: str) -> DeviceWatch:
    return DeviceWatch([sys.executable, "-c", code])


def ask(watch: DeviceWatch, now_s: float) -> bool:
    watch.poll(now_s)
    return watch.is_asking


def watched(watch: DeviceWatch, now_s: float = 0) -> bool:
    watch.poll(now_s)
    deadline = time.monotonic() + 20
    while watch.is_asking and time.monotonic() < deadline:
        if watch.poll(now_s):
            return True
        time.sleep(0.01)
    return False


def test_while_there_is_a_gpu_it_is_looked_at_again_each_minute() -> None:
    watch = probe(f"print('{said(CUDA)}')")

    assert watched(watch)
    assert watch.found == (CUDA,)
    assert [ask(watch, AGAIN_S - 1), ask(watch, AGAIN_S + 1)] == [False, True]
    watch.close()


def test_without_one_nobody_looks_again() -> None:
    watch = probe(f"print('{said(CPU)}')")

    assert watched(watch)
    assert not ask(watch, 10 * AGAIN_S)


def test_the_best_of_three_measurements_of_rates_counts() -> None:
    rates = "2 * int(sys.argv[2]) + time.monotonic_ns() % 2"
    code = f"import json, sys, time; print(json.dumps({{'rates': {{'F16': {rates} if '--rates' in sys.argv else 0}}}}))"
    watch = DeviceWatch((sys.executable, "-c", code), rates_with=5)

    seen = []
    for number in range(NUM_RATES):
        assert watched(watch, number * (AGAIN_S + 1))
        seen.append(watch.rates["F16"])
    assert seen == sorted(seen)
    assert seen[0] in (10, 11)
    assert not ask(watch, 100 * AGAIN_S)


@pytest.mark.parametrize("code", ["raise SystemExit(1)", "print('nonsense')", "print('{}')"])
def test_a_probe_that_fails_leaves_the_machine_with_its_own_memory(code: str) -> None:
    watch = probe(code)

    assert not watched(watch)
    assert watch.found == ()


def test_a_node_of_an_older_version_reports_no_devices() -> None:
    assert node_beat().devices == ()
