"""What the probe says that a model will take, beside what a process that loads it then takes.

The full table, six shapes with three contexts, is `benchmarks/memory.py`; here are three smaller models.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from packtrain.broker.ids import ModelId
from packtrain.broker.model_info import ModelMemory
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.settings import Settings
from packtrain.workers.backends.base import StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.catalog_config import FILE_NAME
from packtrain.workers.gguf import read_header
from packtrain.workers.instance_messages import InstanceConfig
from packtrain.workers.load_options import LoadOptions, max_outputs
from packtrain.workers.memory import estimate_memory
from packtrain.workers.memory_book import LoadKey, MemoryBook, Readings
from packtrain.workers.memory_probe import MemoryQuestion
from packtrain.workers.memory_prober import MemoryProber
from packtrain.workers.node_catalog import GgufCatalog
from packtrain.workers.own_memory import own_memory
from tests.support.fleets import eventually
from tests.support.gguf_files import write_gguf
from tests.support.memory_measure import measure, taken
from tests.support.sized_models import SHAPES, SizedModel
from tests.support.tiny_bert import write_tiny_bert
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.contract

MIB = 1024 * 1024
MIXTURE = SizedModel(2, 512, 8, 4, 1024, 2000, "Q4_0", n_expert=4)


def key(**changes: object) -> LoadKey:
    return LoadKey(file="f", n_ctx=256, n_slots=2).model_copy(update=changes)


def answers(*questions: MemoryQuestion) -> list[ModelMemory | None]:
    """What the probe says to each; None where it gives up."""
    prober = MemoryProber()
    keys = [key(file=str(number)) for number in range(len(questions))]
    prober.want(dict(zip(keys, questions, strict=True)))
    found: dict[LoadKey, ModelMemory] = {}
    deadline = time.monotonic() + 60
    while not prober.is_idle:
        assert time.monotonic() < deadline
        if answer := prober.poll():
            found[answer[0]] = answer[1]
        time.sleep(0.02)
    return [found.get(key) for key in keys]


@pytest.mark.parametrize(
    "shape",
    [
        replace(SHAPES["grouped queries"], n_layer=4, n_vocab=8000),
        replace(SHAPES["large vocabulary, tied"], n_layer=2, n_vocab=40_000),
        replace(SHAPES["repacked Q4_0"], n_layer=3, n_vocab=4000),
    ],
    ids=["grouped queries", "tied", "repacked"],
)
def test_estimate_is_what_a_full_process_takes(tmp_path: Path, shape: SizedModel) -> None:
    path = shape.write(tmp_path / "m.gguf")

    (expected,) = answers(MemoryQuestion(path=str(path), n_ctx=512, n_slots=1))
    measured = measure(path, n_ctx=512, n_slots=1)

    assert expected is not None
    process, real = measured.before.resident, taken(measured, expected)
    assert real - process > 60 * MIB
    assert expected.estimated_bytes == pytest.approx(real, rel=0.05)
    assert expected.estimated_bytes - process == pytest.approx(real - process, rel=0.05)


def test_cache_type_changes_the_cache(tmp_path: Path) -> None:
    path = MIXTURE.write(tmp_path / "m.gguf")
    question = MemoryQuestion(path=str(path), n_ctx=256, n_slots=2)

    plain, small = answers(question, question.model_copy(update={"options": LoadOptions(kv_type="q8_0")}))

    assert plain is not None
    assert small is not None
    assert small.host("cache") * 32 == plain.host("cache") // 2 * 34
    assert small.host("weights") == plain.host("weights")


def test_a_model_that_only_embeds_is_laid_out_as_it_is_loaded(tmp_path: Path) -> None:
    """One cache for all slots or none, and the rows that its texts need: the formula and llama.cpp agree."""
    bert = write_tiny_bert(tmp_path / "bert.gguf")
    last = write_tiny_model(tmp_path / "last.gguf", pooling=gguf.PoolingType.LAST)
    paths = (bert, last)

    found = answers(*(MemoryQuestion(path=str(path), n_ctx=512, n_slots=6) for path in paths))

    for path, memory in zip(paths, found, strict=True):
        assert memory is not None
        formula = estimate_memory(read_header(path), LoadOptions(), n_ctx=512, n_slots=6)
        assert memory.source == "llama.cpp"
        assert memory.host("cache") == formula.host("cache")
        assert memory.logits_bytes == formula.logits_bytes
        assert memory.host("compute") <= formula.host("compute")  # the formula is from above


@pytest.mark.parametrize(("layers", "tensors"), [(True, 6), (1, 3), (False, 0)])
def test_experts_are_put_on_the_cpu_layer_by_layer(tmp_path: Path, layers: int | bool, tensors: int) -> None:
    # On a machine without GPU they are there anyway, so llama.cpp's own words must show it.
    program = (
        "import ctypes, sys\n"
        "from llama_cpp import llama_cpp as C\n"
        "from packtrain.workers.backends.llama_cpp_params import model_params\n"
        "from packtrain.workers.load_options import LoadOptions\n"
        "said = []\n"
        "keep = C.llama_log_callback(lambda level, text, user: said.append(text))\n"
        "C.llama_log_set(keep, ctypes.c_void_p(0))\n"
        f"params = model_params(LoadOptions(moe_on_cpu={layers}), no_alloc=True)\n"
        "assert C.llama_model_load_from_file(sys.argv[1].encode(), params)\n"
        "print(sum(b'exps' in text and b'overridden to CPU' in text for text in said))\n"
    )
    path = MIXTURE.write(tmp_path / "m.gguf")

    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)

    assert done.stdout.strip() == str(tensors), done.stderr


def test_step_that_wants_more_logits_than_there_is_room_for_never_reaches_c(tmp_path: Path) -> None:
    backend = LlamaCppBackend(write_tiny_model(tmp_path / "m.gguf"), model="m", n_slots=2, n_ctx=256, n_threads=1)
    backend.open(0, SamplingParams(temperature=0), 0, (), 0)
    rows = [StepRows(0, position, [5], True) for position in range(max_outputs(2) + 1)]

    assert len(backend.step(rows[:-1], lambda: False)) == max_outputs(2)
    with pytest.raises(AssertionError, match="17 rows want logits"):
        backend.step(rows, lambda: False)
    backend.shutdown()


def test_probe_that_fails_is_not_asked_again_and_hinders_no_other(tmp_path: Path) -> None:
    broken = MemoryQuestion(path=str(write_gguf(tmp_path / "broken.gguf")), n_ctx=256, n_slots=2)
    good = MemoryQuestion(path=str(write_tiny_model(tmp_path / "tiny.gguf")), n_ctx=256, n_slots=2)

    nothing, something = answers(broken, good)

    assert nothing is None
    assert something is not None
    assert something.source == "llama.cpp"


def test_catalog_learns_from_the_probe_and_then_from_a_load(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write_tiny_model(tmp_path / "models" / "tiny.gguf")
    (tmp_path / FILE_NAME).write_text("[defaults]\ncontext = 256\nslots = 2\n")
    settings = Settings(home=tmp_path, node="n1")
    book = tmp_path / "memory" / "n1.json"
    catalog = GgufCatalog(settings, lambda: 2**33, MemoryBook(book), MemoryProber())
    tiny = ModelId("tiny")

    assert catalog.scan()
    assert catalog.models[tiny][0].memory.source == "header"
    eventually(catalog.poll, "an answer of the probe")
    info, path = catalog.models[tiny]
    assert info.memory.source == "llama.cpp"
    assert info.required_bytes == info.memory.estimated_bytes

    config = InstanceConfig(
        instance="i", model=tiny, path=str(path), worker_name="w", n_slots=2, n_ctx=256, n_threads=1, report_fd=-1,
        options=catalog.options(tiny),
    )  # fmt: skip
    catalog.note_readings(config, Readings(own_memory(), own_memory(), most_private=2 * info.required_bytes))
    after = catalog.models[tiny][0]
    assert after.required_bytes == after.memory.measured_bytes > info.required_bytes

    again = GgufCatalog(settings, lambda: 2**33, MemoryBook(book), MemoryProber())
    again.scan()
    assert again.models[tiny][0] == after
    assert not again.poll()
    again.close()
