"""What the engine may rely on when it embeds, on the scripted model and on llama.cpp with tiny random ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_cpp import llama_cpp

from packtrain.broker.errors import InvalidRequest, ModelLoadFailed
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import Backend, DecodeFailed, Interrupted, StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.backends.llama_cpp_states import SPARE_BYTES
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.machine import MachineMemory
from tests.support import tiny_bert
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.contract

TEXTS = ["a", "ab", "the quick brown fox", "the quick brown fox jumps over the lazy dog", "why?"]
N_SLOTS, N_CTX = 6, 320


def never() -> bool:
    return False


def embed(backend: Backend, *texts: str) -> list[np.ndarray[Any, Any]]:
    return backend.embed([backend.tokenize(text) for text in texts], never)


def bits(vectors: Sequence[np.ndarray[Any, Any]]) -> list[bytes]:
    return [vector.tobytes() for vector in vectors]


def load(path: Path, **options: Any) -> LlamaCppBackend:
    return LlamaCppBackend(path, model=path.stem, n_slots=N_SLOTS, n_ctx=N_CTX, n_threads=1, **options)


class EmbeddingContract:
    """Inherited by one class for each backend."""

    def test_each_text_has_a_vector_of_length_one_in_order(self, backend: Backend) -> None:
        together = embed(backend, *TEXTS)
        backwards = embed(backend, *reversed(TEXTS))[::-1]

        assert [v.shape for v in together] == [(backend.embedding.n_dims,)] * len(TEXTS)
        assert {v.dtype for v in together} == {np.dtype(np.float32)}
        assert [float(np.linalg.norm(v)) for v in together] == pytest.approx([1] * len(TEXTS), abs=1e-6)
        for one, other in zip(together, backwards, strict=True):
            assert one == pytest.approx(other, abs=1e-5)

    def test_a_vector_is_of_its_text(self, backend: Backend) -> None:
        vectors = embed(backend, *TEXTS)

        assert len(set(bits(vectors))) == len(TEXTS)

    def test_again_gives_the_same_bits(self, backend: Backend) -> None:
        assert bits(embed(backend, *TEXTS)) == bits(embed(backend, *TEXTS))

    def test_the_longest_text_and_as_many_as_go_together(self, backend: Backend) -> None:
        shape = backend.embedding
        longest, short = [5] * shape.max_tokens, [5] * (shape.n_rows // shape.max_texts)

        assert len(backend.embed([longest], never)) == 1
        assert len(backend.embed([short] * shape.max_texts, never)) == shape.max_texts

    def test_it_asks_whether_to_stop_and_is_right_afterwards(self, slow: Backend) -> None:
        expected = bits(embed(slow, *TEXTS))

        with pytest.raises(Interrupted):
            slow.embed([slow.tokenize(text) for text in TEXTS], lambda: True)

        assert bits(embed(slow, *TEXTS)) == expected


class GeneratorContract(EmbeddingContract):
    """Of a model that also generates."""

    def test_sequences_and_texts_do_not_disturb_each_other(self, backend: Backend) -> None:
        def answer(*texts: str) -> list[int]:
            tokens = backend.tokenize("hello")
            backend.truncate(0, 0)
            backend.open(0, SamplingParams(temperature=0), 1, tokens, 0)
            output: list[int] = []
            for _ in range(4):
                start = 0 if not output else len(tokens) + len(output) - 1
                rows = StepRows(0, start, [*tokens, *output][start:], True)
                output += [sampled.token for sampled in backend.step([rows], never)]
                if texts:
                    embed(backend, *texts)
            backend.close(0)
            return output

        vectors = bits(embed(backend, *TEXTS))

        assert answer(*TEXTS) == answer()
        assert bits(embed(backend, *TEXTS)) == vectors

    def test_it_is_no_embedder_only(self, backend: Backend) -> None:
        assert not backend.shape.embeds_only


class TestScripted(GeneratorContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return ScriptedBackend(n_slots=N_SLOTS, n_ctx=N_CTX)

    @pytest.fixture
    def slow(self) -> Backend:
        return ScriptedBackend(n_slots=N_SLOTS, n_ctx=N_CTX, step_s=0.001)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    return write_tiny_model(folder / "tiny.gguf")


@pytest.fixture(scope="module")
def bert(folder: Path) -> Path:
    return tiny_bert.write_tiny_bert(folder / "bert.gguf")


@pytest.fixture(scope="module")
def generator(tiny: Path) -> Iterator[Backend]:
    backend = load(tiny)
    yield backend
    backend.shutdown()


@pytest.fixture(scope="module")
def embedder(bert: Path) -> Iterator[Backend]:
    backend = load(bert)
    yield backend
    backend.shutdown()


class TestLlamaCpp(GeneratorContract):
    @pytest.fixture
    def backend(self, generator: Backend) -> Backend:
        return generator

    @pytest.fixture
    def slow(self, generator: Backend) -> Backend:
        return generator


class TestBert(EmbeddingContract):
    @pytest.fixture
    def backend(self, embedder: Backend) -> Backend:
        return embedder

    @pytest.fixture
    def slow(self, embedder: Backend) -> Backend:
        return embedder

    def test_a_text_is_put_between_the_special_tokens_of_its_model(self, backend: Backend) -> None:
        tokens = backend.tokenize("cat")

        assert (tokens[0], tokens[-1]) == (tiny_bert.CLS, tiny_bert.SEP)
        assert len(tokens) > 2

    def test_it_takes_no_more_tokens_than_it_has_positions(self, backend: Backend) -> None:
        assert backend.embedding.max_tokens == tiny_bert.N_CTX < N_CTX

    def test_it_opens_no_sequence(self, backend: Backend) -> None:
        assert backend.shape.embeds_only
        with pytest.raises(AssertionError, match="opens no sequence"):
            backend.open(0, SamplingParams(), 1, [1], 0)


def test_threads_are_set_for_both_contexts_and_for_one_that_is_yet_to_come(tiny: Path, bert: Path) -> None:
    generator, embedder = load(tiny), load(bert)
    for backend in (generator, embedder):
        backend.set_threads(2)
        embed(backend, "a")
        assert backend._embedder is not None
        assert llama_cpp.llama_n_threads(backend._embedder._ctx) == 2
        backend.set_threads(1)
        assert llama_cpp.llama_n_threads(backend._embedder._ctx) == 1
    assert llama_cpp.llama_n_threads(generator._ctx) == 1
    generator.shutdown()
    embedder.shutdown()


def test_a_generator_embeds_only_where_memory_is_free_for_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = LlamaCppBackend(tiny, model="tiny", n_slots=2, n_ctx=64, n_threads=1)
    little = MachineMemory(2**33, SPARE_BYTES)
    with monkeypatch.context() as scarce:
        scarce.setattr("packtrain.workers.machine.memory", lambda: little)
        with pytest.raises(DecodeFailed, match="'tiny' needs 0 MiB more, 256 MiB are free; unload a model"):
            backend.embed([[5, 6]], lambda: False)

    assert backend.embed([[5, 6]], lambda: False)
    backend.shutdown()


def test_a_model_for_embedding_counts_tokens_and_has_no_template(embedder: Backend) -> None:
    embedder.prepare(SamplingParams())
    with pytest.raises(InvalidRequest, match="has no chat template"):
        embedder.render_chat({"messages": []})


def test_mean_of_a_text_in_pieces_is_over_all_its_tokens(folder: Path, generator: Backend) -> None:
    """Its last norm gives each state of this model the same length, so their mean points where that of the last-token
    vectors of all its beginnings does."""
    last = load(write_tiny_model(folder / "last.gguf", pooling=gguf.PoolingType.LAST))
    tokens = [5 + i % 200 for i in range(generator.embedding.n_rows + 40)]
    assert len(tokens) <= generator.embedding.max_tokens

    states = [last.embed([tokens[:count]], never)[0] for count in range(1, len(tokens) + 1)]
    total = np.sum(states, axis=0)
    (vector,) = generator.embed([tokens], never)

    assert last.shape.embeds_only
    assert vector == pytest.approx(total / np.linalg.norm(total), abs=1e-4)
    last.shutdown()


def test_the_first_token_is_the_vector_where_the_file_says_so(folder: Path) -> None:
    first = load(write_tiny_model(folder / "first.gguf", pooling=gguf.PoolingType.CLS))

    assert bits(embed(first, "abc", "abd"))[0] == bits(embed(first, "abcdef"))[0]
    first.shutdown()


def test_a_model_that_ranks_is_refused(folder: Path) -> None:
    reranker = tiny_bert.write_tiny_bert(folder / "reranker.gguf", pooling=gguf.PoolingType.RANK)
    with pytest.raises(ModelLoadFailed, match=r"'reranker'.*ranks pairs of texts"):
        load(reranker)

    generator = load(write_tiny_model(folder / "ranks.gguf", pooling=gguf.PoolingType.RANK))
    with pytest.raises(InvalidRequest, match="ranks pairs of texts"):
        _ = generator.embedding
    assert not generator.shape.embeds_only
    generator.shutdown()


class TestDeterministic:
    """Company, order and pieces change no bit."""

    @pytest.mark.parametrize(
        ("pooling", "kind"),
        [
            (None, gguf.GGMLQuantizationType.Q8_0),
            (gguf.PoolingType.MEAN, gguf.GGMLQuantizationType.Q8_0),
            (gguf.PoolingType.LAST, gguf.GGMLQuantizationType.F32),  # where a matrix of one row takes other kernels
        ],
    )
    def test_batched_where_its_kernels_allow(
        self, tmp_path: Path, pooling: gguf.PoolingType | None, kind: gguf.GGMLQuantizationType
    ) -> None:
        path = write_tiny_model(tmp_path / "tiny.gguf", pooling=pooling, kind=kind)
        backend = load(path, options=LoadOptions(numerics="deterministic"))
        assert backend.shape.recipe == "batched"
        texts = [*TEXTS, "x" * 100]

        alone = [bits(embed(backend, text))[0] for text in texts]

        assert bits(embed(backend, *texts)) == alone
        assert bits(embed(backend, *reversed(texts))) == alone[::-1]
        assert bits(backend.embed([[5]], never)) == bits(backend.embed([[6, 7, 8], [5]], never))[1:]
        assert backend._embedder is not None
        assert backend._embedder.is_batched
        backend.shutdown()

    def test_one_by_one_where_attention_looks_at_the_whole_batch(self, bert: Path) -> None:
        backend = load(bert, options=LoadOptions(numerics="deterministic"))
        assert backend.shape.recipe == "serial"

        alone = [bits(embed(backend, text))[0] for text in TEXTS]

        assert bits(embed(backend, *TEXTS)) == alone
        assert bits(embed(backend, *reversed(TEXTS))) == alone[::-1]
        backend.shutdown()

    def test_one_by_one_where_sequences_are(self, tiny: Path) -> None:
        backend = load(tiny, options=LoadOptions(numerics="deterministic"))
        assert backend.shape.recipe == "serial"

        alone = [bits(embed(backend, text))[0] for text in TEXTS]

        assert bits(embed(backend, *TEXTS)) == alone
        assert backend._embedder is not None
        assert not backend._embedder.is_batched
        backend.shutdown()
