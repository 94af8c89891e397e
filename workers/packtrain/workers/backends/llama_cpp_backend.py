"""llama.cpp as a backend: one model and one context with a cache for all slots, through the low-level API.

`llama_cpp.Llama` runs one sequence at a time behind a lock; here every call is `llama_decode` on a batch of many. Two
rules keep C from ending the process: everything is checked in Python before it crosses (rows, token ids, positions),
and the whole backend lives in an instance process of its own, for what remains (GGML_ASSERT is SIGABRT).

Measured facts behind the choices here: docs/architecture.md, "The engine".
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# ggml reads these once: no debugger may be forked onto a dying process that still holds gigabytes.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

import numpy as np
from llama_cpp import llama_cpp as C
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from packtrain.broker.errors import InvalidParameter, InvalidRequest, ModelLoadFailed
from packtrain.broker.messages import Message, SamplingParams
from packtrain.workers.backends.base import DecodeFailed, Interrupted, SequenceFailed, Shape, StepRows
from packtrain.workers.backends.constraint import Compiler, ConstraintFailed
from packtrain.workers.backends.llama_cpp_batch import Batch
from packtrain.workers.backends.llama_cpp_sampling import ConstrainedSampler, SamplerChain, is_plain_greedy

logger = logging.getLogger(__name__)

#: Rows of one step, and of one of llama.cpp's own sub-steps.
N_BATCH = 512
_WARN, _ERROR, _CONTINUED = 3, 4, 5  # enum ggml_log_level
_ABORTED = 2  # llama_decode: the abort callback said stop

_last_errors: deque[str] = deque(maxlen=8)


@C.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user: Any) -> None:
    """Keep llama.cpp's errors for our own messages; drop its chatter, which would be 200 lines per load."""
    line = text.decode("utf-8", "replace").strip()
    if line and level == _ERROR:
        _last_errors.append(line)
        logger.warning("llama.cpp: %s", line, extra={"event": "llama.error"})


C.llama_log_set(_on_log, ctypes.c_void_p(0))
C.llama_backend_init()


class LlamaCppBackend:
    """A `Backend` on a GGUF file. See `base.Backend` for what may be called from which thread.

    Args:
        path: GGUF file; of a split model, its first part.
        model: Id, for messages.
        n_slots: Sequences at once.
        n_ctx: Tokens of one slot.
        n_threads: Threads for each step. llama.cpp's threads spin: more than idle cores is slower than fewer.

    Raises:
        ModelLoadFailed: llama.cpp refused the file or the memory; its own words are in the message.
    """

    def __init__(self, path: Path, *, model: str, n_slots: int, n_ctx: int, n_threads: int) -> None:
        self._name = model
        self._samplers: dict[int, SamplerChain | ConstrainedSampler | None] = {}  # None: plain greedy
        self._pieces: dict[int, bytes] = {}
        self._should_stop: Callable[[], bool] = lambda: False
        # ctypes drops a callback with its last reference while C still holds the pointer.
        self._abort_callback = C.ggml_abort_callback(lambda _data: self._should_stop())

        self._model = self._load(path)
        self._vocab = C.llama_model_get_vocab(self._model)
        n_vocab = int(C.llama_vocab_n_tokens(self._vocab))
        self._ctx = self._new_context(n_slots, n_ctx, n_threads)
        self._memory = C.llama_get_memory(self._ctx)
        if not self._memory:
            raise ModelLoadFailed(f"{model!r} is no text generator (it has no cache); use it for embeddings only")
        n_batch = int(C.llama_n_batch(self._ctx))
        self._shape = Shape(n_slots, n_ctx, n_batch, n_vocab)
        self._batch = Batch(n_batch)
        self._end_tokens = [t for t in range(n_vocab) if C.llama_vocab_is_eog(self._vocab, t)]
        self._compiler = Compiler(n_vocab, self.piece, self._end_tokens)
        self._template = self._chat_template()

    @property
    def shape(self) -> Shape:
        return self._shape

    def tokenize(self, text: str, *, is_rendered: bool) -> list[int]:
        data = text.encode()
        capacity = len(data) + 8
        buffer = (C.llama_token * capacity)()
        # A rendered chat brings its special tokens as text; a plain prompt may not smuggle any in.
        count = C.llama_tokenize(self._vocab, data, len(data), buffer, capacity, not is_rendered, is_rendered)
        assert count >= 0, f"{-count} tokens from {len(data)} bytes"
        return list(buffer[:count])

    def render_chat(self, messages: Sequence[Message]) -> str:
        if self._template is None:
            raise InvalidRequest(
                f"{self._name!r} has no usable chat template; send a plain prompt (kind 'complete') instead"
            )
        try:
            rendered = self._template(messages=[m.model_dump() for m in messages])  # type: ignore[misc]
        except Exception as error:  # the template is code from the model file: it may raise anything
            raise InvalidParameter(
                f"the chat template of {self._name!r} refuses these messages ({error}); change their roles or order"
            ) from error
        return str(rendered.prompt)

    def piece(self, token: int) -> bytes:
        if not 0 <= token < self._shape.n_vocab:  # resumed from another file of that name; C would end the process
            return b""
        if token not in self._pieces:
            buffer = ctypes.create_string_buffer(64)
            size = C.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            if size < 0:
                buffer = ctypes.create_string_buffer(-size)
                size = C.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            self._pieces[token] = buffer.raw[:size]
        return self._pieces[token]

    def is_end(self, token: int) -> bool:
        return bool(C.llama_vocab_is_eog(self._vocab, token))

    def prepare(self, params: SamplingParams) -> None:
        self._compiler.prepare(params)

    def open(self, seq_id: int, params: SamplingParams, seed: int, history: Sequence[int], num_output: int) -> None:
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
                history=history,
                num_output=num_output,
            )
        )
        self._samplers[seq_id] = ConstrainedSampler(chain, constraint, self._shape.n_vocab) if constraint else chain

    def close(self, seq_id: int) -> None:
        sampler = self._samplers.pop(seq_id)
        if sampler:
            sampler.close()
        C.llama_memory_seq_rm(self._memory, seq_id, -1, -1)

    def truncate(self, seq_id: int, num_cached: int) -> int:
        assert seq_id in self._samplers, f"slot {seq_id} is not open"
        if C.llama_memory_seq_rm(self._memory, seq_id, num_cached, -1):
            return num_cached
        # Recurrent and sliding-window models cannot forget a part: the sequence is computed again from its start.
        C.llama_memory_seq_rm(self._memory, seq_id, -1, -1)
        return 0

    def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool]) -> list[int]:
        self._batch.clear()
        wanted = []
        for row in rows:
            assert row.seq_id in self._samplers, f"slot {row.seq_id} is not open"
            assert 0 <= row.start < row.start + len(row.tokens) <= self._shape.n_ctx, f"{row} in {self._shape.n_ctx}"
            last = self._batch.add(row.tokens, row.start, row.seq_id, wants_logits=row.wants_token)
            if row.wants_token:
                wanted.append((row.seq_id, last))
        self._should_stop = should_stop
        code = C.llama_decode(self._ctx, self._batch.struct)
        if code == _ABORTED:
            raise Interrupted
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}" + (f": {_last_errors[-1]}" if _last_errors else ""))
        self._choose(wanted)
        greedy = self._most_likely(len(wanted)) if any(self._samplers[s] is None for s, _ in wanted) else None
        tokens = []
        for output, (seq_id, row_index) in enumerate(wanted):
            sampler = self._samplers[seq_id]
            if isinstance(sampler, ConstrainedSampler):
                tokens.append(sampler.take())
            elif sampler is not None:
                tokens.append(sampler.sample(self._ctx, row_index))
            else:
                assert greedy is not None
                tokens.append(int(greedy[output]))
        return tokens

    def shutdown(self) -> None:
        for sampler in self._samplers.values():
            if sampler:
                sampler.close()
        self._samplers.clear()
        C.llama_free(self._ctx)
        C.llama_model_free(self._model)

    def _choose(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Choose the tokens of constrained sequences, before any sequence moves on: only this can fail."""
        for seq_id, row_index in wanted:
            sampler = self._samplers[seq_id]
            if isinstance(sampler, ConstrainedSampler):
                logits = C.llama_get_logits_ith(self._ctx, row_index)
                try:
                    sampler.choose(np.ctypeslib.as_array(logits, shape=(self._shape.n_vocab,)))
                except ConstraintFailed as failed:
                    raise SequenceFailed(seq_id, failed.error) from failed

    def _most_likely(self, num_outputs: int) -> np.ndarray[Any, Any]:
        """Argmax of every output row at once: 15 us per token, a greedy chain takes 99."""
        logits = C.llama_get_logits(self._ctx)  # (num_outputs, n_vocab) float32, rows in batch order
        matrix = np.ctypeslib.as_array(logits, shape=(num_outputs, self._shape.n_vocab))
        best: np.ndarray[Any, Any] = matrix.argmax(axis=1)
        return best

    def _load(self, path: Path) -> Any:
        params = C.llama_model_default_params()
        _last_errors.clear()
        model = C.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise ModelLoadFailed(f"llama.cpp cannot load {path.name}: {_why()}; see `packtrain models` for its file")
        return model

    def _new_context(self, n_slots: int, n_ctx: int, n_threads: int) -> Any:
        params = C.llama_context_default_params()
        # One pool for all slots. Each may use n_ctx of its n_slots * n_ctx cells, so the pool cannot run out.
        params.n_ctx = n_slots * n_ctx
        params.kv_unified = True
        params.n_seq_max = n_slots
        params.n_batch = params.n_ubatch = max(N_BATCH, n_slots)
        params.n_threads = params.n_threads_batch = n_threads
        params.abort_callback = self._abort_callback
        _last_errors.clear()
        ctx = C.llama_init_from_model(self._model, params)
        if not ctx:
            raise ModelLoadFailed(
                f"llama.cpp cannot make a context of {n_slots} slots of {n_ctx} tokens: {_why()}; "
                "set fewer slots or a smaller context in packtrain.toml"
            )
        return ctx

    def _chat_template(self) -> Jinja2ChatFormatter | None:
        source = C.llama_model_chat_template(self._model, None)
        if not source:
            return None
        try:
            return Jinja2ChatFormatter(
                source.decode(),
                eos_token=self._text_of(C.llama_vocab_eos(self._vocab)),
                bos_token=self._text_of(C.llama_vocab_bos(self._vocab)),
            )
        except Exception as error:  # code from the model file again
            logger.warning(
                "The chat template of %s is unusable: %s", self._name, error, extra={"event": "template.bad"}
            )
            return None

    def _text_of(self, token: int) -> str:
        text = C.llama_vocab_get_text(self._vocab, token) if token >= 0 else b""
        return str((text or b"").decode("utf-8", "replace"))


def _why() -> str:
    return _last_errors[-1] if _last_errors else "no reason given"


def supports_rpc() -> bool:
    """True when the library was built with -DGGML_RPC=ON."""
    return bool(C.llama_supports_rpc())


def system_info() -> str:
    """CPU features that the library was built with and found."""
    return str(C.llama_print_system_info().decode()).strip()
