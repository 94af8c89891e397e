"""Vectors of texts by llama.cpp: a context of its own on a loaded model, which is empty between two batches.

llama.cpp is asked for the hidden state after each token (pooling NONE), and these are pooled here, each text by itself.
Its own pooling is a product with the whole batch, in which company changes the order of a sum: of five texts in a batch
one had the bits it has alone, and all five have them this way (tests/contract/test_embedding.py). It also lets
a causal model take a text in pieces, so that its scratch space need not grow with the longest text.

Models without a cache (BERT and its kin) look at a whole text at once, in one piece. Their attention runs over the
whole batch, so company changes bits; in deterministic numerics a test finds that out, and each text is computed alone.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from llama_cpp import llama_cpp as C

from packtrain.broker.errors import InvalidRequest
from packtrain.workers.backends.base import DecodeFailed, EmbeddingShape, Interrupted
from packtrain.workers.backends.llama_cpp_batch import Batch
from packtrain.workers.backends.llama_cpp_params import embedding_params
from packtrain.workers.engine.embedding import Vector, to_length_one
from packtrain.workers.gguf import CACHELESS
from packtrain.workers.load_options import EMBED_ROWS, LoadOptions, rows_to_embed

logger = logging.getLogger(__name__)

#: Texts that the test of company takes.
NUM_TESTED = 4
_ABORTED = 2  # llama_decode: the abort callback said stop
_RANK = C.LLAMA_POOLING_TYPE_RANK
_POOLINGS = (C.LLAMA_POOLING_TYPE_MEAN, C.LLAMA_POOLING_TYPE_CLS, C.LLAMA_POOLING_TYPE_LAST)


@dataclass(frozen=True, slots=True)
class Traits:
    """What the file says of a model as an embedder."""

    pooling: int  # enum llama_pooling_type; UNSPECIFIED: the file names none
    is_causal: bool
    n_ctx_train: int  # tokens

    @property
    def is_embedder(self) -> bool:
        """True when the file was made for embedding: only then it says how to pool."""
        return self.pooling in _POOLINGS


def read_traits(model: Any) -> Traits:
    """From the metadata of a loaded model."""
    architecture = _metadata(model, "general.architecture")
    declared = _metadata(model, f"{architecture}.pooling_type")
    return Traits(
        int(declared) if declared.isdigit() else C.LLAMA_POOLING_TYPE_UNSPECIFIED,
        architecture not in CACHELESS and _metadata(model, f"{architecture}.attention.causal") != "false",
        int(C.llama_model_n_ctx_train(model)),
    )


def embedding_shape(
    model: Any, name: str, traits: Traits, *, n_ctx: int, n_slots: int, has_cache: bool
) -> EmbeddingShape:
    """What the embedder of this model takes.

    Raises:
        InvalidRequest: It makes no vectors.
    """
    if traits.pooling == _RANK:
        raise InvalidRequest(f"{name!r} ranks pairs of texts and makes no vectors; use an embedding model", model=name)
    # Without a cache the positions may be a table of that many rows; reading past its end aborts the process.
    max_tokens = n_ctx if has_cache else min(n_ctx, traits.n_ctx_train)
    n_rows = rows_to_embed(max_tokens, is_whole=not (has_cache and traits.is_causal))
    return EmbeddingShape(int(C.llama_model_n_embd_out(model)), max_tokens, n_rows, max(NUM_TESTED, n_slots))


def embedder_bytes(model: Any, shape: EmbeddingShape, options: LoadOptions) -> int:
    """What an embedder of a generator takes, about (SmolLM2 with 4,096 tokens: 186 of 193 MiB).

    The cache of its longest text, from above where it is quantised, and for each row of a step its logits, which
    llama.cpp computes unasked: once as scratch space and once as output.
    """
    head = int(C.llama_model_n_embd(model)) // max(1, int(C.llama_model_n_head(model)))
    elements = int(C.llama_model_n_layer(model)) * int(C.llama_model_n_head_kv(model)) * head * 2  # of K and V
    cache = max(shape.n_rows, shape.max_tokens) * elements * (4 if options.kv_type_used == "f32" else 2)
    n_vocab = int(C.llama_vocab_n_tokens(C.llama_model_get_vocab(model)))
    return cache + 2 * 4 * shape.n_rows * n_vocab


class Embedder:
    """One context for embedding. Belongs to the engine thread; free it with `close` before its model.

    Args:
        model: Loaded llama_model, shared with whoever else uses it.
        options: As the model was loaded.
        pooling: enum llama_pooling_type; MEAN where the file names none.
        company: Which texts are batched: `any`; `proven`: any if a test shows that company changes no bit; or `none`.
        abort_callback: Says when to break off; whoever owns it keeps it alive.

    Raises:
        DecodeFailed: There is not enough memory.
    """

    def __init__(
        self,
        model: Any,
        shape: EmbeddingShape,
        options: LoadOptions,
        *,
        pooling: int,
        n_threads: int,
        company: Literal["any", "proven", "none"],
        abort_callback: Any,
    ) -> None:
        self._shape = shape
        self._pooling = pooling if pooling in _POOLINGS else C.LLAMA_POOLING_TYPE_MEAN
        params = embedding_params(options, shape, n_threads=n_threads)
        params.abort_callback = abort_callback
        self._ctx = C.llama_init_from_model(model, params)
        if not self._ctx:
            raise DecodeFailed(
                f"no memory for a context that embeds {params.n_ctx} tokens; set fewer slots or a smaller context"
            )
        self._memory = C.llama_get_memory(self._ctx)
        self._batch = Batch(shape.n_rows)
        n_batch = int(C.llama_n_batch(self._ctx))
        assert n_batch >= shape.n_rows, f"{n_batch} rows"  # more rows than that would abort the process
        self.is_batched = company == "any"
        if company == "proven":
            n_vocab = int(C.llama_vocab_n_tokens(C.llama_model_get_vocab(model)))
            try:
                self.is_batched = not (reason := self._difference(n_vocab))
            except DecodeFailed:
                self.close()
                raise
            if reason:
                logger.info("Texts are embedded one by one: %s", reason, extra={"event": "embed.serial"})

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[Vector]:
        """See `Backend.embed`."""
        if self.is_batched:
            return self._compute(inputs)
        return [vector for tokens in inputs for vector in self._compute([tokens])]

    def set_threads(self, count: int) -> None:
        """Compute with this many threads from the next batch on."""
        C.llama_set_n_threads(self._ctx, count, count)

    def close(self) -> None:
        """Free the context."""
        C.llama_free(self._ctx)

    def _compute(self, inputs: Sequence[Sequence[int]]) -> list[Vector]:
        if self._memory:
            C.llama_memory_clear(self._memory, False)
        longest = max(map(len, inputs))
        assert 0 < min(map(len, inputs)) <= longest <= self._shape.max_tokens, f"a text of {longest} tokens"
        assert len(inputs) <= self._shape.max_texts, f"{len(inputs)} texts"
        if longest > self._shape.n_rows:
            (tokens,) = inputs
            pools = [_Pool(self._pooling, self._shape.n_dims)]
            for start in range(0, longest, self._shape.n_rows):
                self._step([tokens[start : start + self._shape.n_rows]], start, pools)
        else:
            pools = [_Pool(self._pooling, self._shape.n_dims) for _ in inputs]
            self._step(inputs, 0, pools)
        vectors = [pool.vector() for pool in pools]
        if not all(np.isfinite(vector).all() for vector in vectors):
            raise DecodeFailed("the vector has numbers that are not finite")
        return vectors

    def _step(self, parts: Sequence[Sequence[int]], start: int, pools: Sequence[_Pool]) -> None:
        batch = self._batch
        batch.clear()
        for seq_id, tokens in enumerate(parts):
            batch.add(tokens, start, seq_id, wants_all=True)
        num_rows = int(batch.struct.n_tokens)
        if num_rows == 1:  # a matrix of one row is multiplied by other kernels, which in deterministic mode may not be
            num_rows = batch.add(parts[0], start, 1, wants_all=True) + 1
        code = C.llama_decode(self._ctx, batch.struct)
        if code == _ABORTED:
            raise Interrupted
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}")
        states = np.ctypeslib.as_array(C.llama_get_embeddings(self._ctx), shape=(num_rows, self._shape.n_dims))
        end = 0
        for tokens, pool in zip(parts, pools, strict=True):
            pool.add(states[end : end + len(tokens)])
            end += len(tokens)

    def _difference(self, n_vocab: int) -> str:
        """How a text's vector differs in company from alone; '' when it does not."""
        # From 64 rows on attention takes another kernel.
        lengths = [min(length, self._shape.max_tokens) for length in (1, 2, EMBED_ROWS // 8, EMBED_ROWS // 4)]
        assert len(lengths) == NUM_TESTED
        texts = [[(7919 * (i + 1) + 104_729 * n) % n_vocab for i in range(length)] for n, length in enumerate(lengths)]
        alone = [vector for text in texts for vector in self._compute([text])]
        for order in (texts, texts[::-1]):
            together = self._compute(order)[:: 1 if order is texts else -1]
            same = [a.tobytes() == b.tobytes() for a, b in zip(alone, together, strict=True)]
            if not all(same):
                return f"{same.count(False)} of {len(same)} vectors differ in company"
        return ""


class _Pool:
    """The hidden states of one text, summed up as its model pools."""

    def __init__(self, pooling: int, n_dims: int) -> None:
        self._pooling = pooling
        self._count = 0
        self._sum = np.zeros(n_dims)

    def add(self, states: np.ndarray[Any, Any]) -> None:
        """Further rows, (n_tokens, n_dims) float32; a view that is only valid now."""
        if self._pooling == C.LLAMA_POOLING_TYPE_LAST:
            self._sum = states[-1].astype(np.float64)
        elif self._pooling == C.LLAMA_POOLING_TYPE_MEAN:
            self._sum += states.astype(np.float64).sum(axis=0)
        elif self._count == 0:
            self._sum = states[0].astype(np.float64)
        self._count += len(states)

    def vector(self) -> Vector:
        """Of length 1, so a mean need not be divided by its count."""
        return to_length_one(self._sum)


def _metadata(model: Any, key: str) -> str:
    buffer = ctypes.create_string_buffer(256)
    size = C.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return str(buffer.value.decode("utf-8", "replace")) if size >= 0 else ""
