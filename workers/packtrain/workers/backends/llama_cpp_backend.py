"""llama.cpp as a backend: one model and one context with a cache for all slots, through the low-level API.

A second context on the same model, for embedding, is made when the first text asks for it. A model that was made for
nothing else (BERT and its kin, or a file that says how to pool) has only that one.

`llama_cpp.Llama` runs one sequence at a time behind a lock; here every call is `llama_decode` on a batch of many. Two
rules keep C from ending the process: everything is checked in Python before it crosses (rows, token ids, positions),
and the whole backend lives in an instance process of its own, for what remains (GGML_ASSERT is SIGABRT).

Measured facts behind the choices here: docs/architecture.md, "The engine".
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from llama_cpp import llama_cpp as C

from packtrain.broker.errors import InvalidRequest, JobFailed, ModelLoadFailed, NotDeterministic
from packtrain.broker.fields import Recipe
from packtrain.broker.sampling import SamplingParams
from packtrain.workers import machine
from packtrain.workers.adapters import Adapter, AdapterFile, AdapterSet
from packtrain.workers.backends.base import (
    DecodeFailed,
    EmbeddingShape,
    Interrupted,
    Parked,
    Sampled,
    SequenceFailed,
    Shape,
    StepRows,
)
from packtrain.workers.backends.constraint import ConstraintFailed
from packtrain.workers.backends.llama_cpp_adapters import LoadedAdapters
from packtrain.workers.backends.llama_cpp_batch import Batch, MediaBatch
from packtrain.workers.backends.llama_cpp_checks import check_cells, why_not_batched
from packtrain.workers.backends.llama_cpp_embedding import Embedder, embedder_bytes, embedding_shape, read_traits
from packtrain.workers.backends.llama_cpp_fit import with_fitting_layers
from packtrain.workers.backends.llama_cpp_library import first_error, forget_errors, last_error
from packtrain.workers.backends.llama_cpp_model import LlamaCppModel
from packtrain.workers.backends.llama_cpp_params import RemoteLayers, context_params
from packtrain.workers.backends.llama_cpp_projector import Picture, Projector, Samples
from packtrain.workers.backends.llama_cpp_rpc import check_is_split, connect
from packtrain.workers.backends.llama_cpp_sampling import (
    ConstrainedSampler,
    SamplerChain,
    is_plain_greedy,
    with_logprobs,
)
from packtrain.workers.backends.llama_cpp_selftest import media_self_test, self_test
from packtrain.workers.backends.llama_cpp_states import SPARE_BYTES, read_state, write_state
from packtrain.workers.engine.embedding import Vector
from packtrain.workers.engine.media import MediaRows, Seen, Span, position
from packtrain.workers.gguf import merge_parts, read_header
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.model_files import parts_of
from packtrain.workers.shards.split import Split

logger = logging.getLogger(__name__)

_R = TypeVar("_R")

_ABORTED = 2  # llama_decode: the abort callback said stop

_NEVER = C.ggml_abort_callback()  # a null pointer


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Rows of a step that have logits, and where these are."""

    rows: StepRows
    first_output: int  # of its first scored token, else of the one to sample
    token_row: int  # in the batch: of the last token that is no guess

    @property
    def token_output(self) -> int:
        """Of the first token to sample."""
        return self.first_output + len(self.rows.scored)

    @property
    def guesses(self) -> tuple[int | None, ...]:
        """For each token to sample what it must be for another one to be sampled behind it."""
        if not self.rows.wants_token:
            return ()
        return (*self.rows.tokens[len(self.rows.tokens) - self.rows.num_guessed :], None)


@dataclass(frozen=True, slots=True)
class _Parked(Parked):
    state: Any  # bytes of its cache
    sampler: SamplerChain | ConstrainedSampler | None
    adapters: AdapterSet
    params: SamplingParams
    media: tuple[Span, ...]


class LlamaCppBackend(LlamaCppModel):
    """A `Backend` on a GGUF file. See `base.Backend` for what may be called from which thread.

    Args:
        path: GGUF file; of a split model, its first part.
        model: Id, for messages.
        n_slots: Sequences at once.
        n_ctx: Tokens of one slot.
        n_threads: Threads for each step. llama.cpp's threads spin: more than idle cores is slower than fewer.
        options: Numerics, cache type, layers on the GPU and the like. With `deterministic` numerics the instance takes
            the kernels that compute each row alone, and proves it before it is ready.
        adapters: LoRA adapters to load beside it. One that cannot be loaded has a fault and fails no other.
        projector: What turns media into its input; None: it takes text alone.
        split: Where its last layers are, if on shards.

    Raises:
        ModelLoadFailed: llama.cpp refused the file or the memory, its own words are in the message; or it only ranks.
    """

    def __init__(
        self,
        path: Path,
        *,
        model: str,
        n_slots: int,
        n_ctx: int,
        n_threads: int,
        options: LoadOptions = LoadOptions(),  # noqa: B008  frozen
        adapters: Sequence[AdapterFile] = (),
        projector: Path | None = None,
        split: Split | None = None,
    ) -> None:
        self._adapter_sets: dict[int, AdapterSet] = {}  # of open slots
        self._samplers: dict[int, SamplerChain | ConstrainedSampler | None] = {}  # None: plain greedy
        self._params: dict[int, SamplingParams] = {}
        self._media: dict[int, tuple[Span, ...]] = {}  # of what slots hold, where positions are not counted by tokens
        self._projector: Projector | None = None
        self._no_media_because = ""
        self._should_stop: Callable[[], bool] = lambda: False
        self._asks = True
        # ctypes drops a callback with its last reference while C still holds the pointer.
        self._abort_callback = C.ggml_abort_callback(lambda _data: self._should_stop())

        check_cells(n_slots, n_ctx)
        remote: RemoteLayers | None = None
        if split:
            split.check(model, merge_parts([read_header(part) for part in parts_of(path)]).n_layer)
            remote = connect(split)
        else:
            options = with_fitting_layers(path, options, n_ctx=n_ctx, n_slots=n_slots)
        super().__init__(path, model=model, options=options, remote=remote)
        self._adapters = LoadedAdapters(self._model, path, adapters)
        n_vocab = self._n_vocab
        self._n_threads = n_threads
        self._traits = read_traits(self._model)
        self._embedder: Embedder | None = None
        # Of an embedder this is only a look at whether it has a cache.
        sizes = (1, 1) if self._traits.is_embedder else (n_slots, n_ctx)
        self._ctx = self._new_context(*sizes, n_threads)
        if split and remote:
            check_is_split(self._ctx, split, remote)
        self._memory = C.llama_get_memory(self._ctx)
        self._embeds_only = not self._memory or self._traits.is_embedder
        try:
            self._embedding: EmbeddingShape | InvalidRequest = embedding_shape(
                self._model, model, self._traits, n_ctx=n_ctx, n_slots=n_slots, has_cache=bool(self._memory)
            )
        except InvalidRequest as error:
            self._embedding = error
        if self._embeds_only:
            C.llama_free(self._ctx)
            self._ctx = None
            self._shape = _in_a_thread_that_ends(lambda: self._load_embedder(n_slots, n_ctx, n_vocab))
            return
        n_batch = int(C.llama_n_batch(self._ctx))
        self._batch = Batch(n_batch)
        self._shape = Shape(n_slots, n_ctx, n_batch, n_vocab, "fast", self._can_share())
        if projector:
            self._projector = Projector(projector, self._model, name=model, max_rows=n_batch, max_tokens=n_ctx)
        if options.numerics == "deterministic":
            try:
                self._matrix_types = merge_parts([read_header(part) for part in parts_of(path)]).matrix_types
                self._shape = replace(self._shape, recipe=_in_a_thread_that_ends(self._proven_recipe))
                _in_a_thread_that_ends(self._test_projector)
            except (DecodeFailed, SequenceFailed) as failed:
                raise ModelLoadFailed(f"{model!r} is loaded but computes nothing: {failed}") from failed

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def embedding(self) -> EmbeddingShape:
        if isinstance(self._embedding, InvalidRequest):
            raise InvalidRequest(self._embedding.message, **self._embedding.data)
        return self._embedding

    def embed(self, inputs: Sequence[Sequence[int]], should_stop: Callable[[], bool]) -> list[Vector]:
        if self._embedder is None:
            # A sign of life for whoever asks, but not to be broken off: it would begin anew at the next text.
            self._should_stop = lambda: should_stop() and False
            self._check_memory_to_embed()
            self._embedder = self._new_embedder(can_batch=self._shape.recipe != "serial")
        self._should_stop = should_stop
        return self._embedder.embed(inputs)

    def prepare(self, params: SamplingParams) -> None:
        self._compiler.prepare(params)

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        return self._adapters.offered

    def open(
        self,
        seq_id: int,
        params: SamplingParams,
        seed: int,
        history: Sequence[int],
        num_output: int,
        *,
        adapters: AdapterSet = (),
        media: Sequence[Span] = (),
    ) -> None:
        assert not self._embeds_only, f"{self._name} opens no sequence"
        assert 0 <= seq_id < self._shape.n_slots, f"slot {seq_id} of {self._shape.n_slots}"
        assert seq_id not in self._samplers, f"slot {seq_id} is in use"
        constraint = self._compiler.constraint(params, history[len(history) - num_output :])
        chain = (
            None
            if is_plain_greedy(params)
            else SamplerChain(
                params,
                seed,
                n_vocab=self._shape.n_vocab,
                end_tokens=self._end_tokens,
                history=[token for token in history if token >= 0] if media else history,
                num_output=num_output,
            )
        )
        self._samplers[seq_id] = ConstrainedSampler(chain, constraint, self._shape.n_vocab) if constraint else chain
        self._adapter_sets[seq_id] = adapters
        self._params[seq_id] = params
        self._media[seq_id] = tuple(media) if self._projector and self._projector.has_places else ()

    def close(self, seq_id: int) -> None:
        del self._adapter_sets[seq_id]
        sampler = self._samplers.pop(seq_id)
        del self._params[seq_id]
        if sampler:
            sampler.close()

    def truncate(self, seq_id: int, num_cached: int) -> int:
        if C.llama_memory_seq_rm(self._memory, seq_id, self._position(seq_id, num_cached), -1):
            return num_cached
        # Recurrent and sliding-window models cannot forget a part: the sequence is computed again from its start.
        C.llama_memory_seq_rm(self._memory, seq_id, -1, -1)
        return 0

    def copy(self, source: int, targets: Sequence[int], num_tokens: int) -> None:
        # Not llama_memory_seq_cp: between streams that copies the whole room of a slot, used or not.
        state = read_state(self._ctx, source)
        for target in targets:
            write_state(self._ctx, target, state)
            C.llama_memory_seq_rm(self._memory, target, self._position(source, num_tokens), -1)
            if target not in self._samplers:  # else they are those of the sequence in it
                self._media[target] = self._media.get(source, ())

    def move(self, source: int, target: int) -> None:
        assert target not in self._samplers, f"slot {target} is in use"
        write_state(self._ctx, target, read_state(self._ctx, source))
        self._samplers[target] = self._samplers.pop(source)
        self._adapter_sets[target] = self._adapter_sets.pop(source)
        self._params[target] = self._params.pop(source)
        self._media[target] = self._media.get(source, ())

    def park(self, seq_id: int) -> Parked:
        state = read_state(self._ctx, seq_id, is_kept=True)
        sampler, adapters = self._samplers.pop(seq_id), self._adapter_sets.pop(seq_id)
        media = self._media.get(seq_id, ())
        return _Parked(len(state), state, sampler, adapters, self._params.pop(seq_id), media)

    def unpark(self, parked: Parked, seq_id: int) -> None:
        assert isinstance(parked, _Parked)
        assert seq_id not in self._samplers, f"slot {seq_id} is in use"
        self._samplers[seq_id] = parked.sampler
        self._adapter_sets[seq_id] = parked.adapters
        self._params[seq_id] = parked.params
        self._media[seq_id] = parked.media
        write_state(self._ctx, seq_id, parked.state)

    def discard(self, parked: Parked) -> None:
        assert isinstance(parked, _Parked)
        if parked.sampler:
            parked.sampler.close()

    @property
    def sees(self) -> bool:
        return self._projector is not None and self._projector.sees

    def see(self, picture: Picture) -> Seen:
        return self._able().see(picture)

    @property
    def hears(self) -> bool:
        return self._projector is not None and self._projector.hears

    @property
    def sample_rate(self) -> int:
        return self._projector.sample_rate if self._projector else 0

    def hear(self, samples: Samples) -> Seen:
        return self._able().hear(samples)

    def _able(self) -> Projector:
        assert self._projector, f"{self._name} has no projector"
        if self._no_media_because:
            raise NotDeterministic(model=self._name, reason=self._no_media_because)
        return self._projector

    def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool] | None) -> list[Sampled]:
        if rows[0].media is not None:
            return self._step_of_media(rows, should_stop)
        self._batch.clear()
        wanted: list[_Wanted] = []
        num_outputs = 0
        for row in rows:
            assert row.seq_id in self._samplers, f"slot {row.seq_id} is not open"
            start, end = row.start, row.start + len(row.tokens)
            # Not the tokens themselves: what is said here lands in logs.
            assert 0 <= start < end <= self._shape.n_ctx, f"rows [{start}, {end}) in a slot of {self._shape.n_ctx}"
            num_scored = len(row.scored)
            assert row.num_outputs <= len(row.tokens), f"{row.num_outputs} of {len(row.tokens)} rows want logits"
            assert not (row.num_guessed and isinstance(self._samplers[row.seq_id], ConstrainedSampler))
            last = self._batch.add(
                row.tokens, self._position(row.seq_id, row.start), row.seq_id, wants_logits=row.wants_token,
                num_scored=num_scored, num_guessed=row.num_guessed,
            )  # fmt: skip
            if row.num_outputs:
                wanted.append(_Wanted(row, num_outputs, last - row.num_guessed))
                num_outputs += row.num_outputs
        assert num_outputs <= self._shape.n_outputs, f"{num_outputs} rows want logits"  # else SIGABRT
        self._decode(self._batch.struct, rows, should_stop)
        return self._sample(wanted, num_outputs)

    def _step_of_media(self, rows: Sequence[StepRows], should_stop: Callable[[], bool] | None) -> list[Sampled]:
        assert self._projector
        parts: list[tuple[int, int, MediaRows]] = []
        for row in rows:
            assert row.media is not None, "a step has rows of media or of text, not both"
            assert row.media.count == len(row.tokens)
            assert 0 <= row.start < row.start + row.media.count <= self._shape.n_ctx
            parts.append((row.seq_id, self._position(row.seq_id, row.start), row.media))
        assert sum(image.count for _, _, image in parts) <= self._shape.n_batch  # else SIGABRT
        batch = MediaBatch(parts, [row.wants_token for row in rows], has_places=self._projector.has_places)
        wanted = [
            _Wanted(row, number, batch.last_row(number, parts)) for number, row in enumerate(rows) if row.wants_token
        ]
        wanted = [replace(want, first_output=output) for output, want in enumerate(wanted)]
        is_causal = all(image.is_causal for _, _, image in parts)
        try:
            if not is_causal:
                C.llama_set_causal_attn(self._ctx, False)
            self._decode(batch.struct, rows, should_stop)
        finally:
            if not is_causal:
                C.llama_set_causal_attn(self._ctx, True)
        return self._sample(wanted, len(wanted))

    def _decode(self, batch: Any, rows: Sequence[StepRows], should_stop: Callable[[], bool] | None) -> None:
        (adapters,) = {self._adapter_sets[row.seq_id] for row in rows}
        self._adapters.set_on(self._ctx, adapters)
        self._ask_whether_to_stop(should_stop)
        code = C.llama_decode(self._ctx, batch)
        if code == _ABORTED:
            raise Interrupted
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}" + (f": {error}" if (error := last_error()) else ""))

    def _position(self, seq_id: int, index: int) -> int:
        """Of a token in what a slot holds. They differ only where media take fewer positions than rows."""
        media = self._media.get(seq_id)
        return position(media, index) if media else index

    def _sample(self, wanted: Sequence[_Wanted], num_outputs: int) -> list[Sampled]:
        """What became of each of a step's rows that wanted something, in the batch's order."""
        if not wanted:
            return []
        logits = self.logits(num_outputs)
        likeliest = logits.argmax(axis=1)  # 5 us a row of 49,152; a greedy chain takes 99
        self._check(wanted, logits[np.arange(num_outputs), likeliest])
        self._choose(wanted, logits)
        sampled = []
        for want in wanted:
            params = self._params[want.rows.seq_id]
            for output, token in enumerate(want.rows.scored, want.first_output):
                sampled.append(with_logprobs(logits[output], token, params.prompt_logprobs or 0))
            for place, guess in enumerate(want.guesses):
                output = want.token_output + place
                token = self._next(want.rows.seq_id, int(likeliest[output]), want.token_row + place)
                num_top, row = params.logprobs, logits[output]
                sampled.append(Sampled(token) if num_top is None else with_logprobs(row, token, num_top))
                if token != guess:
                    break
        return sampled

    def _next(self, seq_id: int, likeliest: int, row: int) -> int:
        """The next token of a sequence.

        Args:
            likeliest: By its logits.
            row: Of the batch, that these are the logits of.
        """
        sampler = self._samplers[seq_id]
        if sampler is None:
            return likeliest
        if isinstance(sampler, ConstrainedSampler):
            return sampler.take()
        return sampler.sample(self._ctx, row)

    def logits(self, num_outputs: int) -> np.ndarray[Any, Any]:
        """Logits of the last step, (num_outputs, n_vocab) float32, rows in batch order. Only until the next step."""
        pointer = C.llama_get_logits(self._ctx)
        return np.ctypeslib.as_array(pointer, shape=(num_outputs, self._shape.n_vocab))

    def set_threads(self, count: int) -> None:
        self._n_threads = count  # of an embedder that is yet to come
        if self._ctx:
            C.llama_set_n_threads(self._ctx, count, count)
        if self._embedder:
            self._embedder.set_threads(count)

    def shutdown(self) -> None:
        for sampler in self._samplers.values():
            if sampler:
                sampler.close()
        self._samplers.clear()
        if self._embedder:
            self._embedder.close()
        if self._projector:
            self._projector.close()
        if self._ctx:
            C.llama_free(self._ctx)
        self._adapters.close()
        super().shutdown()

    def _ask_whether_to_stop(self, should_stop: Callable[[], bool] | None) -> None:
        """Let the next step ask, or not: llama.cpp asks at each of some 500 graph nodes, each time for the lock of the
        interpreter, which other threads of ours may hold for milliseconds."""
        if should_stop is not None:
            self._should_stop = should_stop
        if (should_stop is not None) != self._asks:
            self._asks = should_stop is not None
            C.llama_set_abort_callback(self._ctx, self._abort_callback if self._asks else _NEVER, None)

    def _new_embedder(self, *, can_batch: bool = True) -> Embedder:
        is_deterministic = self._options.numerics == "deterministic"
        return Embedder(
            self._model,
            self.embedding,
            self._options,
            pooling=self._traits.pooling,
            n_threads=self._n_threads,
            company=("proven" if can_batch else "none") if is_deterministic else "any",
            abort_callback=self._abort_callback,
        )

    def _check_memory_to_embed(self) -> None:
        # Nobody reserved it: most models that answer are never asked for vectors.
        needed = embedder_bytes(self._model, self.embedding, self._options)
        free = machine.memory().available
        if needed > free - SPARE_BYTES:
            raise DecodeFailed(
                f"to embed, {self._name!r} needs {needed // 2**20} MiB more, {free // 2**20} MiB are free; unload a "
                "model, set a smaller `context` for this one in packtrain.toml, or use a model made for embedding"
            )

    def _load_embedder(self, n_slots: int, n_ctx: int, n_vocab: int) -> Shape:
        """The shape of a model that embeds only, once it can.

        Raises:
            ModelLoadFailed: It cannot.
        """
        try:
            self._embedder = self._new_embedder()
        except (InvalidRequest, DecodeFailed) as error:
            raise ModelLoadFailed(f"{self._name!r} cannot be loaded for embedding: {error}") from error
        recipe: Recipe = "fast"
        if self._options.numerics == "deterministic":
            recipe = "batched" if self._embedder.is_batched else "serial"
        n_rows = self.embedding.n_rows
        return Shape(n_slots, n_ctx, n_rows, n_vocab, recipe, can_share=False, embeds_only=True)

    def _can_share(self) -> bool:
        """Whether a part of a sequence may be kept. Recurrent and sliding-window layers forget what came before."""
        forgets = C.llama_model_is_recurrent(self._model) or C.llama_model_is_hybrid(self._model)
        return not forgets and C.llama_model_n_swa(self._model) == 0

    def _proven_recipe(self) -> Recipe:
        """The first deterministic recipe that stands its test.

        Raises:
            NotDeterministic: None does.
        """
        reason = "parts of a sequence cannot be kept (recurrent or sliding-window layers)"
        if self._shape.can_share:
            reason = why_not_batched(self._matrix_types) or self_test(self, "batched")
            reason = reason or self._fault_of_adapters("batched")
            if not reason:
                return "batched"
        logger.info("%s: not batched but serial, %s", self._name, reason, extra={"event": "recipe.serial"})
        if reason := self_test(self, "serial"):
            raise NotDeterministic(model=self._name, reason=reason)
        self._fault_of_adapters("serial")
        return "serial"

    def _test_projector(self) -> None:
        """See whether the proven recipe holds for media, too; if not, they are refused."""
        recipe = self._shape.recipe
        if self._projector and recipe != "fast":
            self._no_media_because = media_self_test(self, recipe, self._projector)
            if self._no_media_because:
                logger.warning("%s: no media, %s", self._name, self._no_media_because, extra={"event": "recipe.blind"})

    def _check(self, wanted: Sequence[_Wanted], highest: np.ndarray[Any, Any]) -> None:
        """End a sequence whose highest logit is not finite, which it is if any is NaN: each draw would be garbage."""
        for want in wanted:
            for logit in highest[want.first_output : want.first_output + want.rows.num_outputs]:
                if not math.isfinite(logit):
                    raise SequenceFailed(
                        want.rows.seq_id,
                        JobFailed(
                            f"{self._name!r} computed a logit of {logit}: its weights are damaged, or too large for "
                            "their type; download the file again, or use another quantisation"
                        ),
                    )

    def _fault_of_adapters(self, recipe: Literal["batched", "serial"]) -> str:
        """Why a recipe does not hold with an adapter; empty: it holds. One that not even `serial` makes deterministic
        cannot be used: the others and the model itself are not to blame."""
        for name, adapter in self._adapters.usable.items():
            reason = self._adapters.why_not_batched(name) if recipe == "batched" else ""
            try:
                reason = reason or self_test(self, recipe, ((name, adapter.scale or 1.0),))
            except (DecodeFailed, SequenceFailed) as failed:
                self._adapters.give_up(name, f"it computes nothing: {failed}")
                continue
            if reason and recipe == "batched":
                return f"with the adapter {name} {reason}"
            if reason:
                self._adapters.give_up(name, f"it is not deterministic: {reason}")
        return ""

    def _choose(self, wanted: Sequence[_Wanted], logits: np.ndarray[Any, Any]) -> None:
        """Choose the tokens of constrained sequences, before any sequence moves on: only this can fail."""
        for want in wanted:
            sampler = self._samplers[want.rows.seq_id]
            if want.rows.wants_token and isinstance(sampler, ConstrainedSampler):
                try:
                    sampler.choose(logits[want.token_output])
                except ConstraintFailed as failed:
                    raise SequenceFailed(want.rows.seq_id, failed.error) from failed

    def _new_context(self, n_slots: int, n_ctx: int, n_threads: int) -> Any:
        params = context_params(self._options, n_slots=n_slots, n_ctx=n_ctx, n_threads=n_threads)
        params.abort_callback = self._abort_callback
        forget_errors()
        ctx = C.llama_init_from_model(self._model, params)
        if not ctx:
            raise ModelLoadFailed(
                f"llama.cpp cannot make a context of {n_slots} slots of {n_ctx} tokens: {first_error()}; "
                "set fewer slots or a smaller context in packtrain.toml"
            )
        return ctx


def _in_a_thread_that_ends(compute: Callable[[], _R]) -> _R:
    """Compute before the engine's thread does. OpenMP keeps a team of threads for each thread that ever computed, and
    once there are more of them than cores it no longer spins at barriers: 46 tokens/s where there had been 90."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(compute).result()
