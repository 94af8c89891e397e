"""What jobs do with a model besides plain text, over a shard: the bits of the same model alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest

from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.adapters import AdapterFile, AdapterSet
from packtrain.workers.backends.base import StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.media import place
from packtrain.workers.engine.sequence import Ended, SequenceRequest
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.shards.process import ShardProcess
from packtrain.workers.shards.split import ShardPlace, Split
from tests.support.tiny_lora import write_tiny_lora
from tests.support.tiny_model import FIRST_BYTE, N_LAYER, write_tiny_model
from tests.support.tiny_projectors import MARKS, write_tiny_projector

pytestmark = [pytest.mark.contract, pytest.mark.skipif(sys.platform != "linux", reason="a split needs Linux")]

GREEDY = SamplingParams(temperature=0)
PROMPT = list(range(10, 40))
PICTURE = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@contextmanager
def backend_of(folder: Path, *, is_split: bool) -> Iterator[LlamaCppBackend]:
    """The tiny model with an adapter and a projector; all its layers but one on a shard."""
    with ExitStack() as stack:
        split = None
        if is_split:
            shard = ShardProcess(cache_folder=None, n_threads=1, numerics="deterministic")
            stack.callback(shard.close)
            shard.wait()
            split = Split(shards=(ShardPlace(port=shard.port, layers=N_LAYER - 1),))
        special = MARKS.get("idefics3", ())
        made = LlamaCppBackend(
            write_tiny_model(folder / "m.gguf", kind=gguf.GGMLQuantizationType.Q8_0, special=special),
            model="m", n_slots=2, n_ctx=256, n_threads=1, options=LoadOptions(numerics="deterministic"), split=split,
            adapters=[AdapterFile(name="pirate", path=str(write_tiny_lora(folder / "pirate.gguf")))],
            projector=write_tiny_projector(folder / "m-mmproj.gguf", "idefics3"),
        )  # fmt: skip
        stack.callback(made.shutdown)
        yield made


def with_adapters(backend: LlamaCppBackend, adapters: AdapterSet) -> bytes:
    """The logits behind a prompt."""
    backend.open(0, GREEDY, 1, [], 0, adapters=adapters)
    backend.truncate(0, 0)
    backend.step([StepRows(0, 0, PROMPT, True)], None)
    bits = backend.logits(1).tobytes()
    backend.close(0)
    return bits


def after_parking(backend: LlamaCppBackend) -> bytes:
    """The logits of a job that left its slot and came back to another one."""
    backend.open(0, GREEDY, 1, [], 0)
    backend.truncate(0, 0)
    token = backend.step([StepRows(0, 0, PROMPT, True)], None)[0].token
    backend.unpark(backend.park(0), 1)
    backend.step([StepRows(1, len(PROMPT), [token], True)], None)
    bits = backend.logits(1).tobytes()
    backend.close(1)
    return bits


def about_a_picture(backend: LlamaCppBackend) -> tuple[int, ...]:
    """Tokens of an answer."""
    ends, tokens = list[Ended](), list[int]()
    engine = Engine(backend, clock=lambda: 0.0)
    before, spans = place("ab" * 32, backend.see(PICTURE), 1)
    prompt = (1, *before, *(FIRST_BYTE + byte for byte in b"what?"))
    engine.submit(
        SequenceRequest(
            JobId("a"), prompt, SamplingParams(temperature=0, ignore_eos=True), 0, 12,
            lambda news: tokens.extend(news.tokens), ends.append, media=tuple(spans),
        )
    )  # fmt: skip
    while engine.is_busy:
        engine.step()
    assert ends[0].end == "length"
    return tuple(tokens)


def all_uses(backend: LlamaCppBackend) -> dict[str, object]:
    texts = [backend.tokenize(text) for text in ("hello", "a longer text to embed")]
    return {
        "plain": with_adapters(backend, ()),
        "adapter": with_adapters(backend, (("pirate", 1.0),)),
        "vectors": [vector.tobytes() for vector in backend.embed(texts, lambda: False)],
        "parked": after_parking(backend),
        "picture": about_a_picture(backend),
    }


def test_adapters_vectors_parking_and_pictures_have_the_bits_of_the_model_alone(tmp_path: Path) -> None:
    with backend_of(tmp_path, is_split=False) as whole:
        alone = all_uses(whole)
    with backend_of(tmp_path, is_split=True) as over_a_shard:
        together = all_uses(over_a_shard)

    assert together == alone
    assert alone["adapter"] != alone["plain"]
