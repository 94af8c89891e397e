"""What the engine may rely on, shown on the scripted model and on llama.cpp with a tiny random one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from packtrain.broker.errors import InvalidParameter, InvalidRequest, ModelLoadFailed
from packtrain.broker.ids import JobId
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.structured import JsonSchema
from packtrain.workers.backends.base import Backend, DecodeFailed, Interrupted, SequenceFailed, StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.backends.llama_cpp_sampling import MIN_TEMPERATURE, is_plain_greedy, token_seed
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.chat.preparing import prepare
from packtrain.workers.load_options import LoadOptions
from tests.support import templates
from tests.support.tiny_model import BOS, END_OF_TURN, EOS, write_tiny_model

pytestmark = pytest.mark.contract

PROMPT = "the quick brown fox jumps over the lazy dog"
GREEDY = SamplingParams(temperature=0)
WARM = SamplingParams(temperature=0.8)
N_SLOTS, N_CTX = 4, 256


class Counter:
    """A `should_stop` that says yes at its n-th question."""

    def __init__(self, yes_at: int | None = None) -> None:
        self.asked = 0
        self._yes_at = yes_at

    def __call__(self) -> bool:
        self.asked += 1
        return self._yes_at is not None and self.asked >= self._yes_at


class Slot:
    """A sequence in a slot of a backend, stepped by hand."""

    def __init__(
        self,
        backend: Backend,
        prompt: str | list[int] = PROMPT,
        *,
        seq_id: int = 0,
        params: SamplingParams = GREEDY,
        seed: int = 1,
        output: list[int] | None = None,
    ) -> None:
        self.backend = backend
        self.seq_id = seq_id
        self.tokens = prompt if isinstance(prompt, list) else backend.tokenize(prompt)
        self.tokens = [*self.tokens, *(output or [])]
        self.num_cached = 0
        backend.truncate(seq_id, 0)
        backend.open(seq_id, params, seed, self.tokens, len(output or []))

    def rows(self, count: int | None = None) -> StepRows:
        end = len(self.tokens) if count is None else self.num_cached + count
        return StepRows(self.seq_id, self.num_cached, self.tokens[self.num_cached : end], end == len(self.tokens))

    def took(self, rows: StepRows, token: int | None = None) -> None:
        self.num_cached += len(rows.tokens)
        if token is not None:
            self.tokens.append(token)

    def next(self) -> int:
        """One step alone."""
        rows = self.rows()
        (sampled,) = self.backend.step([rows], Counter())
        self.took(rows, sampled.token)
        return sampled.token

    def run(self, count: int) -> list[int]:
        return [self.next() for _ in range(count)]

    def close(self) -> None:
        self.backend.close(self.seq_id)


def answer(backend: Backend, count: int = 12, **fields: Any) -> list[int]:
    """The first tokens of an answer, from a slot of its own."""
    slot = Slot(backend, **fields)
    tokens = slot.run(count)
    slot.close()
    return tokens


class BackendContract:
    """Inherited by one class for each backend."""

    def test_a_step_gives_a_token_for_each_row_that_wants_one_in_order(self, backend: Backend) -> None:
        alone = [answer(backend, 1, prompt=prompt) for prompt in ("first", "second")]
        slots = [Slot(backend, "first", seq_id=0), Slot(backend, "half", seq_id=1), Slot(backend, "second", seq_id=3)]

        sampled = backend.step([slots[0].rows(), slots[1].rows(2), slots[2].rows()], Counter())

        assert [[s.token] for s in sampled] == alone

    def test_free_text_needs_no_preparation(self, backend: Backend) -> None:
        backend.prepare(WARM)

    def test_a_form_that_cannot_be_kept_is_refused_when_it_is_prepared(self, backend: Backend) -> None:
        form = JsonSchema({"type": "string", "pattern": "(?=a)b"})

        with pytest.raises(InvalidParameter, match="response_format cannot be enforced"):
            backend.prepare(SamplingParams(response_format=form))

    def test_no_wanted_row_gives_no_token(self, backend: Backend) -> None:
        assert backend.step([Slot(backend).rows(5)], Counter()) == []

    def test_every_token_is_in_the_vocabulary(self, backend: Backend) -> None:
        assert all(0 <= token < backend.shape.n_vocab for token in answer(backend, params=WARM))

    def test_a_prompt_in_chunks_gives_the_same_token_as_at_once(self, backend: Backend) -> None:
        (at_once,) = answer(backend, 1)
        slot = Slot(backend)
        while slot.num_cached + 7 < len(slot.tokens):
            rows = slot.rows(7)
            assert backend.step([rows], Counter()) == []
            slot.took(rows)

        assert slot.next() == at_once

    def test_the_next_token_depends_on_what_came_before(self, backend: Backend) -> None:
        assert answer(backend, 4, prompt="abcdef") != answer(backend, 4, prompt="fedcba")

    def test_a_step_again_after_truncate_gives_the_same_token(self, backend: Backend) -> None:
        slot = Slot(backend)
        slot.run(5)
        before = slot.num_cached
        expected = slot.next()
        slot.tokens.pop()

        slot.num_cached = backend.truncate(slot.seq_id, before)

        assert slot.num_cached in (before, 0)
        assert slot.next() == expected

    def test_truncating_to_nothing_computes_the_prompt_anew(self, backend: Backend) -> None:
        slot = Slot(backend)
        expected = slot.next()
        slot.tokens.pop()

        slot.num_cached = backend.truncate(slot.seq_id, 0)

        assert slot.num_cached == 0
        assert slot.next() == expected

    def test_truncating_one_sequence_leaves_the_others(self, backend: Backend) -> None:
        expected = answer(backend, 6)
        slot, other = Slot(backend), Slot(backend, "another prompt", seq_id=1)
        tokens = slot.run(3)
        other.run(3)

        backend.truncate(other.seq_id, 0)

        assert tokens + slot.run(3) == expected

    def test_a_slot_can_be_closed_and_opened_again(self, backend: Backend) -> None:
        expected = answer(backend, prompt="another prompt")
        answer(backend)

        assert answer(backend, prompt="another prompt") == expected

    def test_a_closed_slot_leaves_the_others_alone(self, backend: Backend) -> None:
        expected = answer(backend, 6)
        slot, other = Slot(backend), Slot(backend, "another prompt", seq_id=1)
        tokens = slot.run(3)
        other.run(3)

        other.close()

        assert tokens + slot.run(3) == expected

    def test_a_closed_slot_keeps_its_cache_for_the_next(self, backend: Backend) -> None:
        expected = answer(backend, 6)
        slot = Slot(backend)
        slot.run(3)
        slot.close()

        again = Slot.__new__(Slot)
        again.backend, again.seq_id, again.tokens = backend, 0, list(slot.tokens)
        again.num_cached = backend.truncate(0, slot.num_cached)
        backend.open(0, GREEDY, 1, again.tokens, 3)

        assert again.num_cached == slot.num_cached
        assert [*slot.tokens[-3:], *again.run(3)] == expected

    def test_a_copied_prefix_goes_on_as_if_computed(self, backend: Backend) -> None:
        expected = answer(backend, 6)
        source = Slot(backend, seq_id=1)
        source.run(4)
        slots = [Slot(backend, seq_id=0), Slot(backend, seq_id=3)]

        backend.copy(1, [0, 3], 11)
        for slot in slots:
            slot.num_cached = 11

        assert [slot.run(6) for slot in slots] == [expected, expected]
        assert [*source.tokens[-4:], *source.run(2)] == expected

    def test_a_moved_sequence_goes_on_as_if_it_had_stayed(self, backend: Backend) -> None:
        expected = answer(backend, 9, params=WARM, seed=5)
        slot, other = Slot(backend, seq_id=2, params=WARM, seed=5), Slot(backend, "another", seq_id=0)
        tokens = slot.run(4)
        other.run(2)

        backend.move(2, 1)
        slot.seq_id = 1

        assert tokens + slot.run(5) == expected
        Slot(backend, seq_id=2)  # free again

    def test_a_sequence_with_nothing_computed_can_be_moved_to_where_another_left_something(
        self, backend: Backend
    ) -> None:
        expected = answer(backend, 5)
        left = Slot(backend, "another", seq_id=0)
        left.run(3)
        slot = Slot(backend, seq_id=1)
        backend.close(0)

        backend.move(1, 0)
        slot.seq_id = 0

        assert slot.run(5) == expected

    @pytest.mark.parametrize("params", [GREEDY, WARM, SamplingParams(temperature=0.8, repeat_penalty=1.3, logprobs=1)])
    @pytest.mark.parametrize("target", [2, 0], ids=["the same slot", "another slot"])
    def test_a_parked_sequence_goes_on_as_if_it_had_stayed(
        self, backend: Backend, params: SamplingParams, target: int
    ) -> None:
        expected = answer(backend, 9, params=params, seed=5)
        slot, other = Slot(backend, seq_id=2, params=params, seed=5), Slot(backend, "another", seq_id=1)
        begun = slot.run(4)
        parked = backend.park(2)
        inserted = [Slot(backend, "a third that is longer than it", seq_id=seq_id) for seq_id in (0, 2)]
        for each in (other, *inserted):
            each.run(3)
        for each in inserted:
            each.close()

        backend.unpark(parked, target)
        slot.seq_id = target

        assert begun + slot.run(5) == expected
        assert parked.num_bytes > 0
        assert answer(backend, 9, params=params, seed=5, seq_id=2 - target) == expected

    def test_a_sequence_in_the_midst_of_its_prompt_can_be_parked(self, backend: Backend) -> None:
        expected = answer(backend, 5)
        slot = Slot(backend)
        backend.step([rows := slot.rows(7)], Counter())
        slot.took(rows)

        backend.unpark(backend.park(0), 3)
        slot.seq_id = 3

        assert slot.run(5) == expected

    def test_a_sequence_with_nothing_computed_can_be_parked(self, backend: Backend) -> None:
        expected = answer(backend, 5)
        slot = Slot(backend, seq_id=1)
        parked = backend.park(1)
        left = Slot(backend, "another", seq_id=0)
        left.run(3)
        left.close()

        backend.unpark(parked, 0)
        slot.seq_id = 0

        assert slot.run(5) == expected

    def test_the_slot_of_a_parked_sequence_is_free_and_keeps_its_cache(self, backend: Backend) -> None:
        expected = answer(backend, 6)
        slot = Slot(backend)
        slot.run(3)

        backend.discard(backend.park(0))
        backend.open(0, GREEDY, 1, slot.tokens, 3)

        assert [*slot.tokens[-3:], *slot.run(3)] == expected

    def test_logprobs_come_when_asked_for_and_change_no_token(self, backend: Backend) -> None:
        slot = Slot(backend, params=SamplingParams(temperature=0, logprobs=3))
        silent = Slot(backend, seq_id=1)

        told, untold = backend.step([slot.rows(), silent.rows()], Counter())

        assert told.token == untold.token
        assert told.logprob is not None
        assert told.logprob <= 0
        assert told.top[0] == (told.token, told.logprob)
        assert len({token for token, _ in told.top}) == len(told.top) <= 3
        assert [lp for _, lp in told.top] == sorted((lp for _, lp in told.top), reverse=True)
        assert untold.logprob is None

    def test_a_step_gives_scored_tokens_before_the_sampled_one_in_order_of_the_rows(self, backend: Backend) -> None:
        scoring = SamplingParams(temperature=0, prompt_logprobs=1)
        slots = [Slot(backend, "first", seq_id=0, params=scoring), Slot(backend, "second", seq_id=2, params=scoring)]
        rows = [replace(slot.rows(), scored=slot.tokens[1:]) for slot in slots]
        alone = [answer(backend, 1, prompt=prompt, seq_id=3) for prompt in ("first", "second")]

        results = backend.step(rows, Counter())

        first, second = results[: len(rows[0].tokens)], results[len(rows[0].tokens) :]
        for slot, found, token in zip(slots, (first, second), alone, strict=True):
            assert [s.token for s in found] == [*slot.tokens[1:], *token]
            assert all(s.logprob is not None and s.logprob < 0 and len(s.top) == 1 for s in found[:-1])
            assert found[-1].logprob is None

    def test_a_score_is_the_same_in_pieces(self, backend: Backend) -> None:
        scoring = SamplingParams(temperature=0, prompt_logprobs=0)
        whole, slot = Slot(backend, "0123456789", seq_id=1, params=scoring), Slot(backend, "0123456789", params=scoring)
        rows = whole.rows()
        expected = backend.step([replace(rows, scored=whole.tokens[1:])], Counter())[:-1]

        found = []
        while (end := slot.num_cached + 3) < len(slot.tokens):
            part = slot.rows(3)
            found += backend.step([replace(part, scored=slot.tokens[slot.num_cached + 1 : end + 1])], Counter())
            slot.took(part)

        assert [s.token for s in found] == [s.token for s in expected][: len(found)]
        pairs = zip(found, expected, strict=False)
        assert all(a.logprob == pytest.approx(b.logprob, abs=0.01) for a, b in pairs)

    @pytest.mark.parametrize("num_right", [0, 1, 3])
    @pytest.mark.parametrize(
        "params",
        [GREEDY, WARM, SamplingParams(temperature=0.8, repeat_penalty=1.3, logprobs=1)],
        ids=lambda p: "params",
    )
    def test_guesses_are_sampled_as_far_as_they_are_right_and_change_nothing(
        self, backend: Backend, num_right: int, params: SamplingParams
    ) -> None:
        expected = answer(backend, 9, params=params, seed=5)
        slot, other = Slot(backend, params=params, seed=5), Slot(backend, "another", seq_id=2)
        slot.next()
        guess = expected[1 : 1 + num_right]
        guess += [(expected[len(guess) + 1] + 1) % 256] * (3 - num_right)
        rows = StepRows(0, slot.num_cached, [*slot.rows().tokens, *guess], True, num_guessed=3)

        *found, neighbours = backend.step([rows, other.rows()], Counter())

        assert [s.token for s in found] == expected[1 : 2 + num_right]
        assert all((s.logprob is None) == (params.logprobs is None) for s in found)
        assert [neighbours.token] == answer(backend, 1, prompt="another", seq_id=3)
        slot.tokens += [s.token for s in found]
        slot.num_cached = backend.truncate(0, slot.num_cached + 1 + num_right)
        assert slot.tokens[-2 - num_right :] + slot.run(7 - num_right) == expected

    def test_an_open_slot_is_not_opened_again(self, backend: Backend) -> None:
        Slot(backend)

        with pytest.raises(AssertionError, match="in use"):
            Slot(backend)

    def test_the_same_seed_gives_the_same_tokens(self, backend: Backend) -> None:
        assert answer(backend, params=WARM, seed=5) == answer(backend, params=WARM, seed=5)

    @pytest.mark.parametrize("params", [GREEDY, WARM, SamplingParams(temperature=0.8, repeat_penalty=1.3)])
    @pytest.mark.parametrize("done", [1, 5, 11])
    def test_a_resumed_sequence_goes_on_as_if_unbroken(
        self, backend: Backend, params: SamplingParams, done: int
    ) -> None:
        whole = answer(backend, 12, params=params, seed=5)

        rest = answer(backend, 12 - done, params=params, seed=5, output=whole[:done])

        assert whole[:done] + rest == whole

    def test_the_number_of_threads_may_change_amid_a_sequence_and_changes_no_token(self, backend: Backend) -> None:
        expected = answer(backend, 9)
        slot = Slot(backend)
        tokens = []
        for threads in (2, 3, 1):
            backend.set_threads(threads)
            tokens += slot.run(3)

        assert tokens == expected

    def test_text_survives_its_tokens(self, backend: Backend) -> None:
        text = "héllo wörld €😀\n"

        assert b"".join(map(backend.piece, backend.tokenize(text))) == text.encode()

    def test_a_rendered_chat_holds_what_the_user_said(self, backend: Backend) -> None:
        rendered = backend.render_chat({"messages": [{"role": "user", "content": "knock knock"}]})

        assert "knock knock" in rendered
        assert backend.tokenize(rendered, add_special=False, parse_special=True)

    def test_an_end_token_has_no_text(self, backend: Backend) -> None:
        ends = [token for token in range(backend.shape.n_vocab) if backend.is_end(token)]

        assert ends
        assert [backend.piece(token) for token in ends] == [b""] * len(ends)

    def test_every_token_but_an_unused_one_has_a_spelling_and_that_of_a_piece_is_the_piece(
        self, backend: Backend
    ) -> None:
        for token in range(backend.shape.n_vocab):
            spelling, piece = backend.spelling(token), backend.piece(token)
            assert spelling
            assert piece in (b"", spelling)

    def test_a_step_asks_whether_to_stop_and_is_right_after_a_repair(self, slow: Backend) -> None:
        (expected,) = answer(slow, 1)
        slot = Slot(slow)

        with pytest.raises(Interrupted):
            slow.step([slot.rows()], Counter(yes_at=1))
        slot.num_cached = slow.truncate(slot.seq_id, 0)

        assert slot.next() == expected


class TestScripted(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return ScriptedBackend(n_slots=N_SLOTS, n_ctx=N_CTX)

    @pytest.fixture
    def slow(self) -> Backend:
        return ScriptedBackend(n_slots=N_SLOTS, n_ctx=N_CTX, step_s=0.001)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Iterator[LlamaCppBackend]:
    backend = LlamaCppBackend(tiny_model, model="tiny", n_slots=N_SLOTS, n_ctx=N_CTX, n_threads=1)
    yield backend
    backend.shutdown()


class TestLlamaCpp(BackendContract):
    @pytest.fixture
    def backend(self, loaded: LlamaCppBackend) -> Iterator[Backend]:
        yield loaded
        for seq_id in range(N_SLOTS):
            try:
                loaded.close(seq_id)
            except KeyError:  # was not open
                continue

    @pytest.fixture
    def slow(self, backend: Backend) -> Backend:
        return backend

    def test_a_long_prefill_asks_often_and_stops_in_its_middle(self, backend: Backend) -> None:
        calm, impatient = Counter(), Counter(yes_at=10)
        long = "x" * (N_CTX - 10)
        slot, other = Slot(backend, long), Slot(backend, long, seq_id=1)
        backend.step([slot.rows()], calm)

        with pytest.raises(Interrupted):
            backend.step([other.rows()], impatient)

        assert impatient.asked < calm.asked

    @pytest.mark.parametrize("function", ["llama_state_seq_get_data", "llama_state_seq_set_data"])
    def test_a_copy_or_move_that_fails_leaves_its_source_as_it_was(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch, function: str
    ) -> None:
        expected = answer(backend, 6)
        slot = Slot(backend, seq_id=1)
        begun = slot.run(2)
        with monkeypatch.context() as broken:
            broken.setattr(f"llama_cpp.llama_cpp.{function}", lambda *_: 0)
            with pytest.raises(DecodeFailed):
                backend.copy(1, [0], 5)
            with pytest.raises(DecodeFailed):
                backend.move(1, 0)
        backend.truncate(0, 0)

        assert begun + slot.run(4) == expected
        assert answer(backend, 6, seq_id=0) == expected

    def test_another_seed_gives_other_tokens(self, backend: Backend) -> None:
        assert answer(backend, params=WARM, seed=5) != answer(backend, params=WARM, seed=6)

    def test_a_draw_depends_only_on_seed_and_index(self, backend: Backend) -> None:
        """The same context at index 0 and at index 3: equal logits, draws of their own index."""
        prompt = backend.tokenize(PROMPT)
        as_output = [answer(backend, 1, prompt=prompt[:-3], output=prompt[-3:], params=WARM, seed=s) for s in range(20)]
        as_prompt = [answer(backend, 1, prompt=prompt, params=WARM, seed=s) for s in range(20)]
        again = [answer(backend, 1, prompt=prompt[:-3], output=prompt[-3:], params=WARM, seed=s) for s in range(20)]

        assert as_output == again
        assert as_output != as_prompt

    def test_a_neighbour_changes_no_draw(self, backend: Backend) -> None:
        alone = answer(backend, 6, params=WARM, seed=5)
        slot, other = Slot(backend, params=WARM, seed=5), Slot(backend, "another", seq_id=1, params=WARM, seed=9)
        tokens = []
        for _ in range(6):
            rows = [slot.rows(), other.rows()]
            for one, row, sampled in zip([slot, other], rows, backend.step(rows, Counter()), strict=True):
                one.took(row, sampled.token)
            tokens.append(slot.tokens[-1])

        assert tokens == alone

    def test_greedy_is_the_same_by_argmax_and_by_a_chain(self, backend: Backend) -> None:
        chained = SamplingParams(temperature=0, logit_bias={0: 0})

        assert is_plain_greedy(GREEDY)
        assert not is_plain_greedy(chained)
        assert answer(backend, 30, params=chained) == answer(backend, 30)

    def test_greedy_and_drawing_sequences_share_a_step(self, backend: Backend) -> None:
        expected = [answer(backend, 1, prompt=p, params=s) for p, s in (("a b", WARM), ("c d", GREEDY), ("e f", WARM))]
        slots = [
            Slot(backend, "a b", seq_id=0, params=WARM),
            Slot(backend, "c d", seq_id=1),
            Slot(backend, "e f", seq_id=2, params=WARM),
        ]

        assert [[s.token] for s in backend.step([slot.rows() for slot in slots], Counter())] == expected

    @pytest.mark.parametrize("temperature", [1e-40, 1e-300, MIN_TEMPERATURE, 1e-4])
    def test_a_temperature_next_to_zero_takes_the_most_likely_token(self, backend: Backend, temperature: float) -> None:
        assert answer(backend, params=SamplingParams(temperature=temperature)) == answer(backend)

    def test_the_smallest_set_that_there_is_holds_the_most_likely_token(self, backend: Backend) -> None:
        assert answer(backend, params=SamplingParams(temperature=2, top_p=0, min_p=0)) == answer(backend)

    def test_a_logit_bias_forces_and_forbids(self, backend: Backend) -> None:
        best = answer(backend, 1)[0]
        forced = SamplingParams(temperature=0, logit_bias={77: 100})
        forbidden = SamplingParams(temperature=0, logit_bias={best: -100})

        assert answer(backend, 5, params=forced) == [77] * 5
        assert answer(backend, 1, params=forbidden) != [best]

    def test_a_logit_bias_outside_the_vocabulary_is_dropped(self, backend: Backend) -> None:
        far = SamplingParams(temperature=0, logit_bias={backend.shape.n_vocab: 100, 2**31 - 1: 100})

        assert answer(backend, params=far) == answer(backend)

    def test_ignoring_the_end_never_gives_an_end_token(self, backend: Backend) -> None:
        bias = {EOS: 100.0, END_OF_TURN: 100.0}
        ending = answer(backend, 1, params=SamplingParams(temperature=0, logit_bias=bias))
        going_on = answer(backend, 20, params=SamplingParams(temperature=0, logit_bias=bias, ignore_eos=True))

        assert backend.is_end(ending[0])
        assert not any(backend.is_end(token) for token in going_on)

    @pytest.mark.parametrize(
        "penalty",
        [{"repeat_penalty": 10}, {"presence_penalty": 2}, {"frequency_penalty": 2}],
        ids=lambda p: next(iter(p)),
    )
    def test_a_penalty_tells_on_what_was_said(self, backend: Backend, penalty: dict[str, float]) -> None:
        loud = {"temperature": 0, "logit_bias": dict.fromkeys((77, 78), 3.0)}
        plain = SamplingParams.model_validate(loud)
        wary = SamplingParams.model_validate({**loud, **penalty})

        assert answer(backend, 40, params=wary) != answer(backend, 40, params=plain)

    def test_a_penalty_looks_back_on_the_prompt(self, backend: Backend) -> None:
        best = answer(backend, 1)[0]
        prompt = backend.tokenize(PROMPT)
        wary = SamplingParams(temperature=0, presence_penalty=2, repeat_penalty=10)
        slot = Slot(backend, params=wary)
        backend.close(slot.seq_id)
        # History and cache are two things: here the same logits meet another history.
        backend.open(0, wary, 1, [*prompt, best], 0)
        backend.truncate(0, 0)
        (sampled,) = backend.step([StepRows(0, 0, prompt, True)], Counter())

        assert sampled.token != best

    def test_a_penalty_looks_back_no_further_than_asked(self, backend: Backend) -> None:
        best = answer(backend, 1)[0]
        prompt = backend.tokenize(PROMPT)
        short = SamplingParams(temperature=0, presence_penalty=2, repeat_penalty=10, penalty_last_n=2)
        backend.open(0, short, 1, [best, *[0] * 2], 0)
        backend.truncate(0, 0)
        (sampled,) = backend.step([StepRows(0, 0, prompt, True)], Counter())

        assert sampled.token == best

    def test_a_plain_prompt_smuggles_in_no_special_token(self, backend: Backend) -> None:
        assert END_OF_TURN not in backend.tokenize("<|im_end|>")
        assert END_OF_TURN in backend.tokenize("<|im_end|>", add_special=False, parse_special=True)

    @pytest.mark.parametrize("text", ["a b", "<|im_end|>", "</s>x", "a<s>"])
    def test_special_tokens_are_added_and_parsed_as_asked(self, backend: Backend, text: str) -> None:
        parsed = backend.tokenize(text, add_special=False, parse_special=True)

        assert b"".join(map(backend.spelling, parsed)) == text.encode()
        assert {BOS, EOS, END_OF_TURN}.isdisjoint(parsed) == ("<" not in text)
        assert {BOS, EOS, END_OF_TURN}.isdisjoint(backend.tokenize(text, add_special=False))
        assert backend.tokenize(text, parse_special=True) == [BOS, *parsed]
        assert backend.tokenize(text) == [BOS, *backend.tokenize(text, add_special=False)]

    @pytest.mark.parametrize(
        "rows",
        [
            [StepRows(2, 0, [5], True)],
            [StepRows(99, 0, [5], True)],
            [StepRows(-1, 0, [5], True)],
            [StepRows(0, 0, [], True)],
            [StepRows(0, -1, [5], True)],
            [StepRows(0, N_CTX, [5], True)],
            [StepRows(0, 0, [5] * (N_CTX + 1), True)],
            [StepRows(0, 0, [5] * 200, True)] * 3,
        ],
        ids=["closed", "no slot", "negative", "empty", "before", "behind", "over", "batch"],
    )
    def test_a_bad_step_is_refused_before_it_reaches_c(self, backend: Backend, rows: list[StepRows]) -> None:
        backend.open(0, GREEDY, 1, [], 0)

        with pytest.raises(AssertionError):
            backend.step(rows, Counter())

    @pytest.mark.parametrize("token", [-1, 10_000])
    def test_a_token_outside_the_vocabulary_costs_only_its_own_step(self, backend: Backend, token: int) -> None:
        slot = Slot(backend)
        expected = slot.next()
        backend.open(1, GREEDY, 1, [], 0)

        with pytest.raises(DecodeFailed):
            backend.step([StepRows(1, 0, [token], True)], Counter())
        backend.truncate(1, 0)

        slot.close()
        assert answer(backend, 1) == [expected]

    @pytest.mark.parametrize("seq_id", [-1, N_SLOTS])
    def test_a_slot_that_is_none_is_not_opened(self, backend: Backend, seq_id: int) -> None:
        with pytest.raises(AssertionError):
            backend.open(seq_id, GREEDY, 1, [], 0)

    def test_a_slot_that_is_not_open_is_not_closed(self, backend: Backend) -> None:
        with pytest.raises(KeyError):
            backend.close(0)

    @pytest.mark.parametrize("token", [-1, 10_000])
    def test_a_token_outside_the_vocabulary_has_no_text(self, backend: Backend, token: int) -> None:
        assert backend.piece(token) == b""
        assert not backend.is_end(token)

    @pytest.mark.parametrize("history", [[-1], [2**31 - 1], [10_000] * 100])
    def test_a_history_of_unknown_tokens_does_no_harm(self, backend: Backend, history: list[int]) -> None:
        params = SamplingParams(temperature=0, repeat_penalty=1.1)
        backend.truncate(0, 0)
        backend.open(0, params, 1, history, 0)

        assert backend.step([StepRows(0, 0, [5, 6], True)], Counter())

    def test_every_slot_can_be_filled_to_its_last_token(self, backend: Backend) -> None:
        slots = [Slot(backend, "x" * (N_CTX - 3), seq_id=seq_id) for seq_id in range(N_SLOTS)]
        for slot in slots:
            slot.run(2)

        assert [len(slot.tokens) for slot in slots] == [N_CTX] * N_SLOTS

    def test_a_file_that_is_no_model_is_refused_with_the_reason(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.gguf"
        path.write_bytes(b"GGUF" + b"\xff" * 100)

        with pytest.raises(ModelLoadFailed, match=r"broken\.gguf"):
            LlamaCppBackend(path, model="broken", n_slots=1, n_ctx=64, n_threads=1)

    @pytest.mark.parametrize("n_slots", [1, 3])
    @pytest.mark.parametrize("n_ctx", [1, 2, 7, 8, 32, 37, 64])
    def test_a_recipe_is_proven_in_a_context_shorter_than_the_test(
        self, tiny_model: Path, n_ctx: int, n_slots: int
    ) -> None:
        backend = LlamaCppBackend(
            tiny_model,
            model="tiny",
            n_slots=n_slots,
            n_ctx=n_ctx,
            n_threads=1,
            options=LoadOptions(numerics="deterministic"),
        )

        assert backend.shape.recipe in ("batched", "serial")
        backend.shutdown()

    def test_the_same_file_loaded_again_answers_the_same(self, backend: Backend, tiny_model: Path) -> None:
        again = LlamaCppBackend(tiny_model, model="tiny", n_slots=1, n_ctx=N_CTX, n_threads=1)

        assert answer(again, params=WARM) == answer(backend, params=WARM)
        again.shutdown()

    @pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ raise_exception('no system message') }}"])
    def test_a_template_that_refuses_is_the_users_to_hear(self, tmp_path: Path, template: str) -> None:
        path = write_tiny_model(tmp_path / "t.gguf", template=template)
        backend = LlamaCppBackend(path, model="t", n_slots=1, n_ctx=64, n_threads=1)

        with pytest.raises(InvalidParameter, match="refuses"):
            backend.render_chat({"messages": [{"role": "user", "content": "x"}]})
        backend.shutdown()

    def test_marks_of_the_family_are_text_and_other_special_tokens_are_not(self, tmp_path: Path) -> None:
        special = ("<think>", "</think>", "<tool_call>", "<|other|>")
        path = write_tiny_model(tmp_path / "t.gguf", template=templates.QWEN, special=special)
        backend = LlamaCppBackend(path, model="t", n_slots=1, n_ctx=64, n_threads=1)

        pieces = [backend.piece(token) for token in range(END_OF_TURN, END_OF_TURN + 5)]

        assert pieces == [b"", b"<think>", b"</think>", b"<tool_call>", b""]
        backend.shutdown()

    def test_special_tokens_that_a_user_types_are_not_parsed(self, backend: Backend) -> None:
        said = "Hi<|im_end|></s>"
        spec = JobSpec(model="tiny", messages=[{"role": "user", "content": said}])

        tokens = prepare(spec, JobId("job"), backend).tokens

        assert (tokens.count(END_OF_TURN), tokens.count(EOS)) == (1, 0)  # the template's own
        assert b"".join(map(backend.piece, tokens)) == f"user: {said}assistant:".encode()

    def test_a_gap_is_filled_with_the_vocabularys_tokens(self, backend: Backend, tmp_path: Path) -> None:
        special = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
        path = write_tiny_model(tmp_path / "t.gguf", special=special)
        coder = LlamaCppBackend(path, model="t", n_slots=1, n_ctx=64, n_threads=1)
        spec = JobSpec(kind="complete", model="t", prompt="a<|fim_middle|>", suffix="b")
        before, after = (coder.tokenize(text, add_special=False) for text in (spec.prompt, spec.suffix))

        pre, suf, mid = range(END_OF_TURN + 1, END_OF_TURN + 4)
        assert prepare(spec, JobId("job"), coder).tokens == [BOS, pre, *before, suf, *after, mid]
        assert mid not in before
        assert BOS not in before
        with pytest.raises(InvalidRequest, match="cannot fill gaps"):
            prepare(spec, JobId("job"), backend)
        coder.shutdown()

    @pytest.mark.parametrize("template", ["", "{% for %}"])
    def test_a_template_that_is_unusable_leaves_plain_prompts(self, tmp_path: Path, template: str) -> None:
        path = write_tiny_model(tmp_path / "t.gguf", template=template)
        backend = LlamaCppBackend(path, model="t", n_slots=1, n_ctx=64, n_threads=1)

        with pytest.raises(InvalidRequest, match="plain prompt"):
            backend.render_chat({"messages": [{"role": "user", "content": "x"}]})
        assert answer(backend, 2)
        backend.shutdown()


def _damaged(path: Path, value: float) -> Path:
    """A model of which one token's logit is no finite number, or is minus infinity, whatever came before."""
    reader = gguf.GGUFReader(write_tiny_model(path), "r+")
    (output,) = [tensor for tensor in reader.tensors if tensor.name == "output.weight"]
    output.data[7] = value  # times a state, of which some numbers are positive and some negative: the sum is NaN
    reader.data.flush()
    return path


@pytest.mark.parametrize("params", [GREEDY, WARM, SamplingParams(temperature=0, repeat_penalty=1.1)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sequence_whose_logits_are_not_finite_ends_with_the_reason(
    tmp_path: Path, value: float, params: SamplingParams
) -> None:
    backend = LlamaCppBackend(_damaged(tmp_path / "d.gguf", value), model="d", n_slots=2, n_ctx=64, n_threads=1)
    slot = Slot(backend, seq_id=1, params=params)

    with pytest.raises(SequenceFailed, match="'d' computed a logit of nan: its weights are damaged") as failed:
        slot.next()

    assert failed.value.seq_id == 1
    backend.shutdown()


def test_a_damaged_model_is_not_loaded_as_deterministic(tmp_path: Path) -> None:
    options = LoadOptions(numerics="deterministic")
    path = _damaged(tmp_path / "d.gguf", float("nan"))

    with pytest.raises(ModelLoadFailed, match=r"computes nothing: .* a logit of nan"):
        LlamaCppBackend(path, model="d", n_slots=2, n_ctx=64, n_threads=1, options=options)


def test_token_seeds_are_stable_distinct_and_never_llamas_random_one() -> None:
    seeds = [token_seed(seed, index) for seed in (0, 1, 2**63 - 1) for index in range(1000)]

    assert (token_seed(0, 0), token_seed(1, 0), token_seed(0, 1)) == (3793791033, 2433363436, 1853398634)
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 0xFFFFFFFF for seed in seeds)
