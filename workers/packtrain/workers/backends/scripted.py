"""A scripted model for tests and for measuring everything but a model: it answers each prompt with known text.

Tokens are UTF-8 bytes. The answer to a prompt is the prompt itself, read backwards by characters, then the end token;
so every answer belongs visibly to its own prompt. Words in the prompt make trouble on purpose:

    !fail    every step with this sequence fails
    !crash   the process dies by SIGABRT, as ggml does
    !hang    the step never returns
    !long    the answer is repeated until the slot is full

A picture or sound is four rows to it, each the byte `#`; they are computed apart from text, as by any model. A picture
that is 13 pixels wide ends the process as `!crash` does, as a decoder may that meets hostile bytes.

An answer with LoRA adapters begins with their names and scales: `pirate*0.5 `. A cache knows the adapters of each of
its tokens, so that one who mixes them is found out.

The vector of a text is made of its hash. `!fail`, `!crash` and `!hang` work there, too.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packtrain.broker.errors import InvalidParameter, InvalidRequest
from packtrain.broker.fields import Recipe
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.structured import FreeText
from packtrain.workers.adapters import Adapter, AdapterSet
from packtrain.workers.backends.base import DecodeFailed, EmbeddingShape, Interrupted, Parked, Sampled, Shape, StepRows
from packtrain.workers.chat.families import ChatFormat, detect
from packtrain.workers.chat.infill import FimTokens
from packtrain.workers.chat.masking import SpecialTexts
from packtrain.workers.engine.embedding import Vector, to_length_one
from packtrain.workers.engine.media import MediaRows, Seen, Span
from packtrain.workers.receipts import Build

END = 256
N_DIMS = 8
CRASHING_WIDTH = 13  # pixels
#: Its prompt backwards may hold the marks of Qwen: `>kniht<` in a prompt begins reasoning in the answer.
FORMAT = detect("<think> <tool_call> tools")
NO_SPECIAL_TEXTS = SpecialTexts(())


@dataclass(slots=True)
class _Open:
    num_prompt: int
    params: SamplingParams
    adapters: AdapterSet = ()


@dataclass(frozen=True, slots=True)
class _Parked(Parked):
    slot: _Open
    cache: tuple[int, ...]
    computed_with: tuple[AdapterSet, ...]


class ScriptedBackend:
    """A `Backend` without weights.

    Args:
        step_s: Seconds that one step takes.
        row_s: Seconds more for each row of it.
        adapters: Their scales by name.
        sees, hears: It takes pictures, sounds.
    """

    def __init__(
        self,
        *,
        n_slots: int = 4,
        n_ctx: int = 512,
        step_s: float = 0,
        row_s: float = 0,
        recipe: Recipe = "batched",
        embeds_only: bool = False,
        adapters: Mapping[str, float] | None = None,
        sees: bool = False,
        hears: bool = False,
    ) -> None:
        self._sees = sees
        self._hears = hears
        n_batch = max(64, n_slots)
        self._shape = Shape(n_slots, n_ctx, n_batch, n_vocab=END + 1, recipe=recipe, embeds_only=embeds_only)
        self._embedding = EmbeddingShape(N_DIMS, n_ctx, n_batch, n_slots)
        self._caches: list[list[int]] = [[] for _ in range(n_slots)]
        self._computed_with: list[list[AdapterSet]] = [[] for _ in range(n_slots)]  # each token of the caches
        self._adapters = {name: Adapter(scale) for name, scale in (adapters or {}).items()}
        self._slots: dict[int, _Open] = {}
        self._step_s = step_s
        self._row_s = row_s
        self.steps: list[list[StepRows]] = []
        self.embedded: list[list[Sequence[int]]] = []
        self.threads: list[int] = []  # as they were set, one after the other
        self.pictures: list[tuple[int, ...]] = []  # that it has seen: height and width
        self.sounds: list[int] = []  # that it has heard: samples

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def build(self) -> Build:
        return Build("scripted", "", "")

    @property
    def chat_format(self) -> ChatFormat:
        return FORMAT

    @property
    def special_texts(self) -> SpecialTexts:
        return NO_SPECIAL_TEXTS

    @property
    def fim_tokens(self) -> FimTokens | None:
        return None

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return list(text.encode())

    def render_chat(self, variables: Mapping[str, Any]) -> str:
        messages = variables["messages"]
        if any(m["role"] == "system" for m in messages):
            raise InvalidRequest("the scripted model takes no system message; leave it out")
        return str(messages[-1]["content"])

    def piece(self, token: int) -> bytes:
        if token < 0:
            return b"#"
        return b"" if token == END else bytes([token])

    def spelling(self, token: int) -> bytes:
        return b"<end>" if token == END else self.piece(token)

    def is_end(self, token: int) -> bool:
        return token == END

    def prepare(self, params: SamplingParams) -> None:
        if not isinstance(params.response_format, FreeText):
            raise InvalidParameter(
                "response_format cannot be enforced: the scripted model says what it says; leave it out",
                field="response_format",
            )

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        return self._adapters

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
        assert seq_id not in self._slots, f"slot {seq_id} is in use"
        self._slots[seq_id] = _Open(len(history) - num_output, params, adapters)

    def close(self, seq_id: int) -> None:
        del self._slots[seq_id]

    def truncate(self, seq_id: int, num_cached: int) -> int:
        del self._caches[seq_id][num_cached:]
        del self._computed_with[seq_id][num_cached:]
        return len(self._caches[seq_id])

    def copy(self, source: int, targets: Sequence[int], num_tokens: int) -> None:
        assert len(self._caches[source]) >= num_tokens, f"slot {source} has {len(self._caches[source])} tokens"
        for target in targets:
            self._caches[target] = self._caches[source][:num_tokens]
            self._computed_with[target] = self._computed_with[source][:num_tokens]

    def move(self, source: int, target: int) -> None:
        assert target not in self._slots, f"slot {target} is in use"
        self._slots[target] = self._slots.pop(source)
        self._caches[target] = list(self._caches[source])
        self._computed_with[target] = list(self._computed_with[source])

    def park(self, seq_id: int) -> Parked:
        cache, computed_with = tuple(self._caches[seq_id]), tuple(self._computed_with[seq_id])
        return _Parked(len(cache), self._slots.pop(seq_id), cache, computed_with)

    def unpark(self, parked: Parked, seq_id: int) -> None:
        assert isinstance(parked, _Parked)
        assert seq_id not in self._slots, f"slot {seq_id} is in use"
        self._slots[seq_id] = parked.slot
        self._caches[seq_id] = list(parked.cache)
        self._computed_with[seq_id] = list(parked.computed_with)

    def discard(self, parked: Parked) -> None:
        assert isinstance(parked, _Parked)

    def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool] | None) -> list[Sampled]:
        self.steps.append(list(rows))
        sets = {self._slots[row.seq_id].adapters for row in rows}
        assert len(sets) <= 1, f"one step with the adapters {sets}"
        assert len({row.media is None for row in rows}) == 1, "one step with text and media"
        for row in rows:
            assert all((token < 0) == (row.media is not None) for token in row.tokens)
        num_outputs = sum(row.num_outputs for row in rows)
        assert num_outputs <= self._shape.n_outputs, f"{num_outputs} rows want logits"
        self._pass_time(self._step_s + self._row_s * sum(len(r.tokens) for r in rows), should_stop)
        for row in rows:
            cache = self._caches[row.seq_id]
            assert row.start == len(cache), f"slot {row.seq_id} has a gap: {row.start} after {len(cache)}"
            cache += row.tokens
            computed_with = self._computed_with[row.seq_id]
            computed_with += [*sets] * len(row.tokens)
            assert set(computed_with) == sets, f"slot {row.seq_id} mixes the adapters {set(computed_with)}"
        for row in rows:
            self._make_trouble(self._prompt(row.seq_id))
        return [sampled for row in rows for sampled in self._outputs(row)]

    @property
    def embedding(self) -> EmbeddingShape:
        return self._embedding

    def embed(self, inputs: Sequence[Sequence[int]], should_stop: Callable[[], bool]) -> list[Vector]:
        self.embedded.append(list(inputs))
        self._pass_time(self._step_s + self._row_s * sum(map(len, inputs)), should_stop)
        for tokens in inputs:
            self._make_trouble(self._bytes(tokens).decode(errors="replace"))
        return [_vector(tokens) for tokens in inputs]

    @property
    def sees(self) -> bool:
        return self._sees

    def see(self, picture: np.ndarray[Any, np.dtype[np.uint8]]) -> Seen:
        self.pictures.append(picture.shape[:2])
        if picture.shape[1] == CRASHING_WIDTH:
            os.abort()
        return (MediaRows(np.zeros((4, N_DIMS), np.float32), 4),)

    @property
    def hears(self) -> bool:
        return self._hears

    @property
    def sample_rate(self) -> int:
        return 8000 if self._hears else 0

    def hear(self, samples: np.ndarray[Any, np.dtype[np.float32]]) -> Seen:
        self.sounds.append(len(samples))
        return (MediaRows(np.zeros((4, N_DIMS), np.float32), 4),)

    def set_threads(self, count: int) -> None:
        self.threads.append(count)

    def shutdown(self) -> None:
        self._slots.clear()

    def _pass_time(self, seconds: float, should_stop: Callable[[], bool] | None) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if should_stop and should_stop():
                raise Interrupted
            time.sleep(min(left, 0.01))

    @staticmethod
    def _make_trouble(prompt: str) -> None:
        if "!fail" in prompt:
            raise DecodeFailed("scripted failure")
        if "!crash" in prompt:
            os.abort()
        while "!hang" in prompt:
            time.sleep(0.05)

    def _prompt(self, seq_id: int) -> str:
        return self._bytes(self._caches[seq_id][: self._slots[seq_id].num_prompt]).decode(errors="replace")

    def _bytes(self, tokens: Sequence[int]) -> bytes:
        return b"".join(map(self.piece, tokens))

    def _outputs(self, row: StepRows) -> Iterator[Sampled]:
        for num_cached, token in enumerate(row.scored, row.start + 1):
            yield self._scored(row.seq_id, num_cached, token)
        if row.wants_token:
            cache, end = self._caches[row.seq_id], row.start + len(row.tokens)
            for num_cached in range(end - row.num_guessed, end + 1):
                yield (sampled := self._sampled(row.seq_id, num_cached))
                if num_cached < end and sampled.token != cache[num_cached]:
                    return

    def _scored(self, seq_id: int, num_cached: int, token: int) -> Sampled:
        """What it thinks of a token behind the first `num_cached` ones: a number made of all of them."""
        logprob = -zlib.crc32(self._bytes([*self._caches[seq_id][:num_cached], token])) / 2**32
        return Sampled(token, logprob, ((token, logprob),)[: self._slots[seq_id].params.prompt_logprobs])

    def _sampled(self, seq_id: int, num_cached: int) -> Sampled:
        """The token behind the first `num_cached` ones."""
        slot = self._slots[seq_id]
        token = self._next(self._caches[seq_id][:num_cached], slot.num_prompt, slot.adapters)
        num_top = slot.params.logprobs
        return Sampled(token) if num_top is None else Sampled(token, 0.0, ((token, 0.0),)[:num_top])

    def _next(self, cached: list[int], num_prompt: int, adapters: AdapterSet) -> int:
        prompt = self._bytes(cached[:num_prompt]).decode(errors="replace")
        begin = "".join(f"{name}*{scale:g} " for name, scale in adapters)
        answer = list((begin + prompt[::-1]).encode())
        produced = len(cached) - num_prompt
        if "!long" in prompt:
            return answer[produced % len(answer)]
        return answer[produced] if produced < len(answer) else END


def _vector(tokens: Sequence[int]) -> Vector:
    digest = hashlib.sha256(repr(tuple(tokens)).encode()).digest()
    return to_length_one(np.frombuffer(digest, "<u4", N_DIMS) / 2**31 - 1)
