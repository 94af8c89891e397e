"""Broken models and such that are no text generators, in a fleet with the real library: each says why, others serve."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from packtrain.client import ModelLoadFailed
from tests.support.fleets import Fleet, eventually, fleet
from tests.support.odd_models import write_encoder_decoder
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("home")
    folder = home / "models"
    folder.mkdir()
    write_tiny_model(folder / "good.gguf")
    write_tiny_model(folder / "shrinks.gguf")
    write_encoder_decoder(folder / "t5.gguf")
    _damage(write_tiny_model(folder / "damaged.gguf"))
    with fleet(home) as running:
        generates(running)
        yield running


def _damage(path: Path) -> None:
    reader = gguf.GGUFReader(path, "r+")
    (output,) = [tensor for tensor in reader.tensors if tensor.name == "output.weight"]
    output.data[:] = float("nan")
    reader.data.flush()


def generates(fleet: Fleet, model: str = "good") -> None:
    result = fleet.client.generate(model, "hello", max_tokens=3, ignore_eos=True, timeout=60)
    assert result.usage.completion_tokens == 3


def test_a_model_that_is_no_text_generator_fails_its_jobs_with_the_reason(real: Fleet) -> None:
    with pytest.raises(ModelLoadFailed, match="is an encoder or an encoder with a decoder"):
        real.client.generate("t5", "hello", raw=True, timeout=90)

    generates(real)


def test_a_model_that_computes_no_numbers_fails_its_jobs_with_the_reason(real: Fleet) -> None:
    with pytest.raises(ModelLoadFailed, match=r"computes nothing: .* a logit of nan"):
        real.client.generate("damaged", "hello", raw=True, timeout=90)


def test_a_file_that_shrinks_under_its_instance_costs_only_that_instance(real: Fleet) -> None:
    generates(real, "shrinks")
    file: Path = real.running.home / "models" / "shrinks.gguf"
    # The weights are mapped: the next touch of a page that the file no longer has is SIGBUS.
    os.truncate(file, 4096)
    job = real.client.submit("shrinks", "hello", max_tokens=3)

    cause = eventually(lambda: job.status().cause, "the crash to be seen")

    assert cause.signal == "SIGBUS"
    assert "the model file changed" in cause.reason
    generates(real)
