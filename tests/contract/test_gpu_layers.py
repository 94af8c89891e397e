"""As many layers as fit are on the GPU. There is none here; the RPC backend makes a device of another process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.backends.llama_cpp_fit import most_that_fit, with_fitting_layers
from packtrain.workers.devices import GPU, FoundDevice, memories
from packtrain.workers.load_options import LoadOptions
from tests.support.rpc_device import N_CTX, N_SLOTS
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.contract


@pytest.fixture
def device() -> Iterator[str]:
    """The port of a process that offers its CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.support.rpc_device", "serve", port]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), timeout=1):
                break
            time.sleep(0.1)
        yield port
        server.kill()


def test_as_many_layers_as_have_room_are_on_the_gpu_and_the_answer_is_the_same(device: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_model(path)
    command = [sys.executable, "-m", "tests.support.rpc_device", "fit", device, str(path), "1"]

    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(told.splitlines()[-1])

    alone = LlamaCppBackend(path, model="m", n_threads=1, n_ctx=N_CTX, n_slots=N_SLOTS)
    alone.open(0, SamplingParams(temperature=0), 1, [], 0)
    tokens = [alone.step([StepRows(0, 0, [1, 2, 3], True)], lambda: False)[0].token]
    tokens += [alone.step([StepRows(0, 3, tokens[:1], True)], lambda: False)[0].token]
    alone.shutdown()
    assert found["on_device"] > 0
    assert (found["fitting"], found["named"]) == (1, 1)
    assert found["everything"] > 1
    assert found["tokens"] == tokens


def test_without_a_gpu_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_model(path)

    assert with_fitting_layers(path, LoadOptions(), n_ctx=256, n_slots=2).gpu_layers is None


@pytest.mark.parametrize(("room", "most"), [(0, 31), (1, 31), (17, 31), (30, 31), (31, 31), (99, 31), (0, 1), (1, 1)])
def test_the_search_finds_the_largest_count_with_few_looks(room: int, most: int) -> None:
    looks: list[int] = []

    def fits(count: int) -> bool:
        looks.append(count)
        return count <= room

    assert most_that_fit(fits, most) == min(room, most)
    assert len(looks) <= 7


def test_a_device_is_seen_with_its_own_memory(device: str) -> None:
    command = [sys.executable, "-m", "tests.support.rpc_device", "list", device]

    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = [FoundDevice.model_validate(entry) for entry in json.loads(told.splitlines()[-1])]

    (gpu,) = [each for each in found if each.type == GPU]
    assert gpu.name.startswith("RPC")
    assert gpu.total >= gpu.free > 0
    assert [each.kind for each in memories(1, 1, found)] == ["ram"]  # that of another machine is not ours
