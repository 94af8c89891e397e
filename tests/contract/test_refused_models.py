"""Files and sizes that would end the process inside llama.cpp are refused at load, each with its reason.

Every load runs in a process of its own: where a refusal is missing, that one dies and not the test run.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.odd_models import write_encoder_decoder, write_model_without_tokenizer
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.contract

LOAD_AND_STEP = """
import sys
from pathlib import Path
from packtrain.broker.errors import ModelLoadFailed
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
path, n_slots, n_ctx = sys.argv[1:]
try:
    backend = LlamaCppBackend(Path(path), model="odd", n_slots=int(n_slots), n_ctx=int(n_ctx), n_threads=1)
except ModelLoadFailed as error:
    print(error)
    sys.exit(3)
backend.open(0, SamplingParams(temperature=0), 1, (5,), 0)
backend.step([StepRows(0, 0, (5,), True)], lambda: False)
"""


def load(path: Path, n_slots: int = 2, n_ctx: int = 256) -> tuple[int, str]:
    """Exit code and what it said, of a process that loads a model and computes a token."""
    arguments = [sys.executable, "-c", LOAD_AND_STEP, str(path), str(n_slots), str(n_ctx)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout


def truncated(path: Path) -> Path:
    content = write_tiny_model(path).read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def truncated_in_its_header(path: Path) -> Path:
    path.write_bytes(write_tiny_model(path).read_bytes()[:3000])
    return path


def with_a_tensor_beyond_the_end(path: Path) -> Path:
    content = bytearray(write_tiny_model(path).read_bytes())
    # After the name: number of dimensions (1), the dimension, the type, the offset.
    place = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8 + 4
    struct.pack_into("<Q", content, place, 2**40)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (truncated, "is not within the file bounds"),
        (truncated_in_its_header, "failed to read key-value pairs"),
        (with_a_tensor_beyond_the_end, "has offset 1099511627776"),
        (write_model_without_tokenizer, "'odd' has no tokenizer in its file"),
        (write_encoder_decoder, "'odd' is an encoder or an encoder with a decoder"),
    ],
)
def test_a_file_that_cannot_generate_text_is_refused_with_the_reason(
    tmp_path: Path, write: Callable[[Path], Path], says: str
) -> None:
    code, said = load(write(tmp_path / "odd.gguf"))

    assert code == 3
    assert says in said


@pytest.mark.parametrize(
    ("n_slots", "n_ctx", "says"),
    [(257, 16, "n_seq_max must be <= 256"), (256, 2**24, "4294967296 cells"), (1, 2**31, "2147483648 cells")],
)
def test_sizes_beyond_llama_cpps_numbers_are_refused_with_the_smallest_change(
    tmp_path: Path, n_slots: int, n_ctx: int, says: str
) -> None:
    code, said = load(write_tiny_model(tmp_path / "odd.gguf"), n_slots, n_ctx)

    assert code == 3
    assert says in said
    assert "set fewer slots or a smaller context" in said


@pytest.mark.parametrize(("n_slots", "n_ctx"), [(256, 16), (1, 1), (1, 4096)])
def test_the_smallest_and_largest_sizes_compute(tmp_path: Path, n_slots: int, n_ctx: int) -> None:
    assert load(write_tiny_model(tmp_path / "odd.gguf"), n_slots, n_ctx)[0] == 0
