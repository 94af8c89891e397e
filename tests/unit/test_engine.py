"""The engine on a scripted model, stepped by hand: who joins, who leaves, and that every answer is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packtrain.broker.errors import InvalidParameter, PromptEmpty
from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import DecodeFailed, Interrupted, Sampled, SequenceFailed, StepRows
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.engine.embedding import EmbedRequest
from packtrain.workers.engine.engine import MAX_FAILURES_IN_A_ROW, Engine, EngineBroken
from packtrain.workers.engine.sequence import End, Ended, SequenceRequest, Tokens

pytestmark = pytest.mark.unit


class Seconds:
    """A clock that tests move by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Reader:
    """Whoever asked for a sequence: collects what the engine says to it."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.ends: list[Ended] = []

    def on_tokens(self, tokens: Tokens) -> None:
        assert not self.ends, "tokens after the end"
        self.tokens += tokens.tokens
        self.text += tokens.text

    def on_end(self, ended: Ended) -> None:
        self.ends.append(ended)
        self.text += ended.tail

    @property
    def end(self) -> End | None:
        assert len(self.ends) <= 1, "ended twice"
        return self.ends[0].end if self.ends else None


class Bench:
    """An engine with a scripted model and a reader for each request."""

    def __init__(self, backend: ScriptedBackend | None = None, *, n_slots: int = 4, prefill_budget: int = 128) -> None:
        self.clock = Seconds()
        self.backend = backend or ScriptedBackend(n_slots=n_slots)
        self.engine = Engine(self.backend, clock=self.clock, prefill_budget=prefill_budget)
        self.readers: dict[str, Reader] = {}

    def submit(
        self,
        prompt: str,
        *,
        job: str = "",
        max_new: int = 200,
        resumed: Sequence[int] = (),
        deadline: float | None = None,
        **params: object,
    ) -> Reader:
        reader = self.readers[job or prompt] = Reader()
        self.engine.submit(
            SequenceRequest(
                job_id=JobId(job or prompt),
                prompt=tuple(prompt.encode()),
                params=SamplingParams.model_validate(params),
                seed=1,
                max_new=max_new,
                on_tokens=reader.on_tokens,
                on_end=reader.on_end,
                resumed=tuple(resumed),
                deadline=deadline,
            )
        )
        return reader

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    def finish(self) -> None:
        """Step until nothing is left to do."""
        for _ in range(5000):
            if not self.engine.is_busy:
                return
            self.engine.step()
        raise AssertionError("the engine never came to an end")

    @property
    def slots_of_last_step(self) -> list[int]:
        return [row.seq_id for row in self.backend.steps[-1]]


class Hooked(ScriptedBackend):
    """Something happens within each step; then the step is broken off if the engine says so."""

    def __init__(self, hook: Callable[[], object], *, n_slots: int = 4) -> None:
        super().__init__(n_slots=n_slots)
        self._hook = hook

    def _pass_time(self, seconds: float, should_stop: Callable[[], bool] | None) -> None:
        self._hook()
        if should_stop and should_stop():
            raise Interrupted


def test_a_prompt_is_answered_to_its_end() -> None:
    bench = Bench()
    reader = bench.submit("hello")
    bench.finish()

    assert (reader.text, reader.end) == ("olleh", End.STOP)
    assert reader.ends[0].num_output == 5


def test_many_at_once_are_one_batch_and_each_answer_is_its_own() -> None:
    bench = Bench(n_slots=24)
    prompts = [f"prompt number {number} €{number}" for number in range(24)]
    readers = [bench.submit(prompt) for prompt in prompts]
    bench.finish()

    assert [reader.text for reader in readers] == [prompt[::-1] for prompt in prompts]
    assert bench.engine.stats.batch_peak == 24
    assert {reader.ends[0].batch_peak for reader in readers} == {24}


def test_a_sequence_joins_while_others_run() -> None:
    bench = Bench()
    first = bench.submit("first prompt")
    bench.steps(3)
    second = bench.submit("second")
    bench.steps(1)

    assert bench.slots_of_last_step == [0, 1]
    bench.finish()
    assert (first.text, second.text) == ("tpmorp tsrif", "dnoces")


def test_a_sequence_leaves_and_its_slot_goes_to_the_next() -> None:
    bench = Bench(n_slots=2)
    bench.submit("ab")
    long = bench.submit("a longer prompt")
    third = bench.submit("third")
    bench.steps(4)  # prompt, b, a, end; then the slot is free

    assert bench.engine.stats.slots_used == 2
    assert bench.slots_of_last_step == [0, 1]
    bench.finish()
    assert (long.text, third.text) == ("tpmorp regnol a", "driht")


def test_the_lowest_free_slot_is_given_out_first() -> None:
    bench = Bench(n_slots=4)
    for name in "abcd":
        bench.submit(f"!long {name}", job=name)
    bench.steps(1)
    for name in "cab":
        bench.engine.cancel(JobId(name), End.CANCELLED)
    bench.submit("!long e")
    bench.steps(1)

    assert bench.slots_of_last_step == [0, 1]  # d moved from 3 to 1: neighbours are computed together


def test_those_that_find_no_slot_wait_in_order() -> None:
    bench = Bench(n_slots=1)
    for name in ("1", "2", "3"):
        bench.submit(name)
    order = []
    while bench.engine.is_busy:
        bench.engine.step()
        order += [name for name, reader in bench.readers.items() if reader.end and name not in order]

    assert order == ["1", "2", "3"]


def test_the_answer_ends_after_as_many_tokens_as_asked_for() -> None:
    bench = Bench()
    reader = bench.submit("hello", max_new=2)
    bench.finish()

    assert (reader.text, reader.end, reader.ends[0].num_output) == ("ol", End.LENGTH, 2)


def test_one_token_is_enough() -> None:
    bench = Bench()
    reader = bench.submit("hello", max_new=1)
    bench.finish()

    assert (reader.text, reader.end) == ("o", End.LENGTH)


def test_a_stop_string_ends_the_answer_before_it() -> None:
    bench = Bench()
    reader = bench.submit("one STOP two", stop=["POTS"])
    bench.finish()

    assert (reader.text, reader.end, reader.ends[0].stopped_by) == ("owt ", End.STOP, "POTS")


def test_text_held_back_for_a_stop_string_comes_with_the_end() -> None:
    bench = Bench()
    reader = bench.submit("hello", stop=["hx"])
    bench.finish()

    assert reader.ends[0].tail == "h"
    assert reader.text == "olleh"


def test_an_answer_that_breaks_off_within_a_character_ends_with_a_replacement() -> None:
    bench = Bench()
    reader = bench.submit("€", max_new=2)
    bench.finish()

    assert reader.text == "�"


def test_ignoring_the_end_token_goes_on_past_it() -> None:
    bench = Bench()
    reader = bench.submit("ab", ignore_eos=True, max_new=4)
    bench.finish()

    assert (reader.end, len(reader.tokens), reader.text) == (End.LENGTH, 4, "ba")


def test_a_running_sequence_is_cancelled_and_its_slot_is_free() -> None:
    bench = Bench()
    reader = bench.submit("!long")
    bench.steps(3)
    bench.engine.cancel(JobId("!long"), End.CANCELLED)
    bench.steps(1)

    assert reader.end is End.CANCELLED
    assert bench.engine.stats.slots_used == 0
    assert not bench.engine.is_busy


def test_a_waiting_sequence_is_cancelled_without_ever_running() -> None:
    bench = Bench(n_slots=1)
    bench.submit("!long")
    waiting = bench.submit("waits")
    bench.steps(1)
    bench.engine.cancel(JobId("waits"), End.CANCELLED)
    bench.steps(1)

    assert (waiting.end, waiting.tokens) == (End.CANCELLED, [])


def test_a_sequence_submitted_and_cancelled_before_the_engine_looks_never_runs() -> None:
    bench = Bench()
    reader = bench.submit("hello")
    bench.engine.cancel(JobId("hello"), End.CANCELLED)
    bench.steps(1)

    assert reader.end is End.CANCELLED
    assert bench.backend.steps == []


def test_cancelling_an_unknown_job_is_ignored() -> None:
    bench = Bench()
    reader = bench.submit("hello")
    bench.engine.cancel(JobId("nosuch"), End.CANCELLED)
    bench.finish()

    assert reader.text == "olleh"


def test_a_cancel_of_an_earlier_lease_does_not_meet_a_later_one() -> None:
    bench = Bench()
    bench.engine.cancel(JobId("hello"), End.LOST)
    reader = bench.submit("hello")
    bench.finish()

    assert reader.end is End.STOP


def test_a_lost_sequence_shows_no_held_back_text() -> None:
    bench = Bench()
    reader = bench.submit("hello", stop=["llx"])
    bench.steps(3)
    bench.engine.cancel(JobId("hello"), End.LOST)
    bench.steps(1)

    assert (reader.end, reader.text) == (End.LOST, "o")


def test_a_cancel_breaks_off_a_long_prefill_and_others_go_on_rightly() -> None:
    bench: Bench

    def cancel_in_the_second_step() -> None:
        if len(bench.backend.steps) == 2:
            bench.engine.cancel(JobId("long"), End.CANCELLED)

    bench = Bench(Hooked(cancel_in_the_second_step))
    other = bench.submit("other")
    bench.steps(1)
    long = bench.submit("x" * 400, job="long")
    bench.finish()

    assert (long.end, long.tokens) == (End.CANCELLED, [])
    assert (other.end, other.text) == (End.STOP, "rehto")


def test_a_cancel_of_a_decoding_sequence_does_not_break_off_the_prefill_of_another() -> None:
    bench: Bench

    def cancel_in_the_second_step() -> None:
        if len(bench.backend.steps) == 2:
            bench.engine.cancel(JobId("!long"), End.CANCELLED)

    bench = Bench(Hooked(cancel_in_the_second_step))
    bench.submit("!long")
    bench.steps(1)
    bench.submit("y" * 60, job="other")
    bench.steps(1)

    assert bench.engine.stats.steps == 2  # none was in vain
    bench.finish()
    assert bench.readers["other"].text == "y" * 60


def test_a_deadline_breaks_off_a_long_prefill() -> None:
    bench: Bench

    def let_time_pass() -> None:
        bench.clock.now += 10

    bench = Bench(Hooked(let_time_pass))
    late = bench.submit("x" * 400, deadline=105)
    bench.finish()

    assert (late.end, late.tokens) == (End.EXPIRED, [])


def test_a_deadline_ends_a_running_answer() -> None:
    bench = Bench()
    reader = bench.submit("!long", deadline=105)
    bench.steps(3)
    bench.clock.now = 105
    bench.steps(1)

    assert reader.end is End.EXPIRED
    assert len(reader.tokens) == 3


def test_a_request_past_its_deadline_never_reaches_the_model() -> None:
    bench = Bench()
    reader = bench.submit("late", deadline=99)
    bench.finish()

    assert reader.end is End.EXPIRED
    assert bench.backend.steps == []


def test_a_stop_breaks_off_a_long_prefill() -> None:
    bench: Bench

    def stop() -> None:
        bench.engine.stop()

    bench = Bench(Hooked(stop))
    reader = bench.submit("x" * 400)
    bench.steps(1)
    bench.engine.run()

    assert (reader.end, reader.tokens) == (End.RELEASED, [])


def test_a_sequence_that_cannot_be_computed_harms_no_other() -> None:
    bench = Bench()
    first, second = bench.submit("first"), bench.submit("second")
    bench.steps(2)
    bad = bench.submit("!fail")
    third = bench.submit("third")
    bench.finish()

    assert bad.end is End.FAILED
    assert bad.ends[0].error is not None
    assert "scripted failure" in str(bad.ends[0].error)
    assert [r.text for r in (first, second, third)] == ["tsrif", "dnoces", "driht"]


def test_many_failing_sequences_among_good_ones_do_not_break_the_engine() -> None:
    bench = Bench(n_slots=24)
    bad = [bench.submit(f"!fail {number}") for number in range(12)]
    good = [bench.submit(f"good {number}") for number in range(12)]
    bench.finish()

    assert {r.end for r in bad} == {End.FAILED}
    assert [r.text for r in good] == [f"good {number}"[::-1] for number in range(12)]


def test_a_model_that_computes_nothing_any_more_breaks_the_engine() -> None:
    bench = Bench(n_slots=1)
    for number in range(MAX_FAILURES_IN_A_ROW + 1):
        bench.submit(f"!fail {number}")

    with pytest.raises(EngineBroken):
        bench.finish()


def test_a_broken_model_costs_no_job_of_a_large_batch() -> None:
    bench = Bench(n_slots=MAX_FAILURES_IN_A_ROW + 1)
    readers = [bench.submit(f"!fail {number}") for number in range(MAX_FAILURES_IN_A_ROW + 1)]

    with pytest.raises(EngineBroken):
        bench.finish()
    assert {reader.end for reader in readers} == {None}  # they go back to the queue with their leases


def test_a_cancel_amid_the_search_for_a_failing_sequence_leaves_all_others_right() -> None:
    bench: Bench

    def cancel_while_they_run_alone() -> None:
        if len(bench.backend.steps) == 3:
            bench.engine.cancel(JobId("long"), End.CANCELLED)

    bench = Bench(Hooked(cancel_while_they_run_alone))
    bad = bench.submit("!fail")
    long = bench.submit("x" * 300, job="long")
    good = bench.submit("good")
    bench.finish()

    assert (bad.end, long.end, good.end) == (End.FAILED, End.CANCELLED, End.STOP)
    assert good.text == "doog"


class Stuck(ScriptedBackend):
    """It names the sequence that cannot go on: one whose prompt begins with a question mark, at its third token."""

    def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool] | None) -> list[Sampled]:
        tokens = super().step(rows, should_stop)
        for row in rows:
            if self._prompt(row.seq_id).startswith("?") and row.start > 7:
                raise SequenceFailed(row.seq_id, InvalidParameter("no such form"))
        return tokens


def test_a_sequence_named_as_failed_ends_alone_with_its_error() -> None:
    bench = Bench(Stuck(n_slots=4))
    first, bad, second = bench.submit("first"), bench.submit("?prompt"), bench.submit("second")
    bench.finish()

    assert (first.end, bad.end, second.end) == (End.STOP, End.FAILED, End.STOP)
    assert [r.text for r in (first, bad, second)] == ["tsrif", "tp", "dnoces"]
    assert isinstance(bad.ends[0].error, InvalidParameter)


def test_a_sequence_named_while_each_runs_alone_ends_alone_too() -> None:
    bench = Bench(Stuck(n_slots=4))
    bad, good = bench.submit("?prompt"), bench.submit("good")
    bench.steps(2)
    broken = bench.submit("!fail")
    bench.finish()

    assert (bad.end, good.end, broken.end) == (End.FAILED, End.STOP, End.FAILED)
    assert good.text == "doog"


def test_any_number_of_sequences_named_as_failed_leaves_the_engine_whole() -> None:
    bench = Bench(Stuck(n_slots=1))
    bad = [bench.submit(f"?prompt {number}") for number in range(MAX_FAILURES_IN_A_ROW + 2)]
    bench.finish()

    assert {reader.end for reader in bad} == {End.FAILED}


def test_a_step_that_fails_once_costs_no_job() -> None:
    class FailsOnce(ScriptedBackend):
        def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool] | None) -> list[Sampled]:
            tokens = super().step(rows, should_stop)
            if len(self.steps) == 3:
                raise DecodeFailed("no KV slot")
            return tokens

    bench = Bench(FailsOnce())
    readers = [bench.submit("one"), bench.submit("two")]
    bench.finish()

    assert [r.text for r in readers] == ["eno", "owt"]


def test_a_model_that_must_forget_a_whole_sequence_computes_it_again() -> None:
    class Recurrent(ScriptedBackend):
        def truncate(self, seq_id: int, num_cached: int) -> int:
            return super().truncate(seq_id, 0)

    bench = Bench(Recurrent())
    good = bench.submit("a good prompt")
    bench.steps(4)
    bench.submit("!fail")
    bench.finish()

    assert good.text == "tpmorp doog a"


@pytest.mark.parametrize("done", range(1, 7))
def test_a_resumed_sequence_goes_on_exactly_where_it_was(done: int) -> None:
    answer = list("prompt"[::-1].encode())
    bench = Bench()
    reader = bench.submit("prompt", resumed=answer[:done])
    bench.finish()

    assert reader.tokens == answer[done:]
    assert reader.text == "tpmorp"[done:]
    assert (reader.end, reader.ends[0].num_output) == (End.STOP, 6)


def test_the_index_of_tokens_goes_on_after_a_resume() -> None:
    seen: list[int] = []
    bench = Bench()
    prompt, resumed = tuple(b"abcd"), tuple(b"dc")
    bench.engine.submit(
        SequenceRequest(
            JobId("j"), prompt, SamplingParams(), 1, 9, lambda new: seen.append(new.index), lambda _: None, resumed
        )
    )
    bench.finish()

    assert seen == [2, 3]


def test_a_resume_rebuilds_text_that_was_held_back() -> None:
    first = Bench()
    before = first.submit("hello", stop=["llx"])
    first.steps(3)
    first.engine.stop()
    first.engine.run()

    second = Bench()
    after = second.submit("hello", stop=["llx"], resumed=before.tokens)
    second.finish()

    assert before.end is End.RELEASED
    assert (before.text, after.text) == ("o", "lleh")


def test_a_resume_within_a_stop_string_still_stops() -> None:
    bench = Bench()
    reader = bench.submit("hello", stop=["ll"], resumed=b"ol")
    bench.finish()

    assert (reader.text, reader.end) == ("", End.STOP)


def test_a_resume_within_a_character_completes_it() -> None:
    bench = Bench()
    reader = bench.submit("€", resumed="€".encode()[:2])
    bench.finish()

    assert reader.text == "€"


@pytest.mark.parametrize(
    ("resumed", "fields", "end"), [(b"ol", {"max_new": 2}, End.LENGTH), (b"oll", {"stop": ["ll"]}, End.STOP)]
)
def test_a_resume_of_a_sequence_that_had_reached_its_end_only_says_so(
    resumed: bytes, fields: dict[str, object], end: End
) -> None:
    bench = Bench()
    reader = bench.submit("hello", resumed=resumed, **fields)  # type: ignore[arg-type]
    bench.finish()

    assert (reader.end, reader.tokens, reader.text) == (end, [], "")
    assert reader.ends[0].num_output == len(resumed)
    assert bench.backend.steps == []


def test_a_resume_after_the_last_token_before_the_end_token_ends() -> None:
    bench = Bench()
    reader = bench.submit("ab", resumed=b"ba")
    bench.finish()

    assert (reader.end, reader.tokens) == (End.STOP, [])


def test_a_stopped_engine_releases_every_sequence_without_its_held_back_text() -> None:
    bench = Bench(n_slots=1)
    running = bench.submit("hello", stop=["llx"])
    waiting = bench.submit("waits")
    bench.steps(3)
    new = bench.submit("new")
    bench.engine.stop()
    bench.engine.run()
    late = bench.submit("late")

    assert {r.end for r in (running, waiting, new, late)} == {End.RELEASED}
    assert running.text == "o"
    assert not bench.engine.is_busy


def test_a_slot_is_clean_for_the_next_sequence() -> None:
    bench = Bench(n_slots=1)
    readers = [bench.submit(f"number {number}") for number in range(5)]
    bench.finish()

    assert [r.text for r in readers] == [f"number {number}"[::-1] for number in range(5)]


def test_a_long_prompt_does_not_stop_the_others_from_decoding() -> None:
    bench = Bench(prefill_budget=8)
    short = bench.submit("short")
    bench.steps(1)
    long = bench.submit("x" * 80)
    bench.steps(5)

    assert short.end is End.STOP
    assert long.tokens == []
    bench.finish()
    assert long.text == "x" * 80


def test_statistics_count_what_was_done() -> None:
    bench = Bench()
    bench.submit("ab")
    bench.submit("cd")
    bench.finish()

    stats = bench.engine.stats
    assert (stats.steps, stats.tokens_out, stats.batch_peak, stats.slots_used, stats.waiting) == (3, 4, 2, 0, 0)


_PROMPTS = st.sampled_from(["a", "hello", "€😀", "x" * 150, "!fail", "!long", "!fail " + "z" * 90, "two words"])
_SCRIPT = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), _PROMPTS),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("lose"), st.integers(0, 20)),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("wait"), st.integers(1, 3)),
    ),
    max_size=40,
)


def _play(bench: Bench, script: list[tuple[str, str | int]]) -> Iterator[tuple[str, Reader]]:
    """Play a script; (prompt, reader) of each request, in order."""
    count = 0
    for action, value in script:
        match action, value:
            case "submit", str(prompt):
                deadline = bench.clock.now + 3 if count % 5 == 4 else None
                yield prompt, bench.submit(prompt, job=f"j{count}", max_new=40, deadline=deadline)
                count += 1
            case "cancel", int(number):
                bench.engine.cancel(JobId(f"j{number}"), End.CANCELLED)
            case "lose", int(number):
                bench.engine.cancel(JobId(f"j{number}"), End.LOST)
            case "step", int(number):
                bench.steps(number)
            case "wait", int(number):
                bench.clock.now += number


@settings(max_examples=80, deadline=None)
@given(script=_SCRIPT, n_slots=st.integers(1, 5), prefill_budget=st.sampled_from([1, 16, 128]))
def test_every_request_ends_exactly_once_with_its_own_answer(
    script: list[tuple[str, str | int]], n_slots: int, prefill_budget: int
) -> None:
    bench = Bench(n_slots=n_slots, prefill_budget=prefill_budget)
    try:
        asked = list(_play(bench, script))
        bench.finish()
    except EngineBroken:
        return  # too many that fail in a row: the process ends here
    bench.engine.stop()
    bench.engine.run()

    for prompt, reader in asked:
        full = prompt[::-1].encode() * (40 if "!long" in prompt else 1)
        assert len(reader.ends) == 1
        assert bytes(reader.tokens) == full[: len(reader.tokens)]
        if reader.end is End.STOP:
            assert reader.text == prompt[::-1]
        if reader.end is End.LENGTH:
            assert len(reader.tokens) == 40
        if reader.end is End.FAILED:
            assert "!fail" in prompt
    assert bench.engine.stats.slots_used == 0


def test_jobs_that_arrive_together_compute_their_common_prefix_once() -> None:
    bench = Bench(n_slots=4)
    prefix = "a long preamble that all of them share, "
    readers = [bench.submit(f"{prefix}{number}") for number in range(4)]
    bench.finish()

    assert [r.text for r in readers] == [f"{prefix}{number}"[::-1] for number in range(4)]
    computed = sum(len(r.tokens) for step in bench.backend.steps for r in step if len(r.tokens) > 1)
    assert computed < len(prefix) + 4 * 10
    assert bench.engine.stats.tokens_reused == 3 * len(prefix)


def test_a_chat_goes_on_from_what_its_slot_retains() -> None:
    bench = Bench(n_slots=2)
    first = bench.submit("tell me of llamas")
    bench.finish()
    again = "tell me of llamas" + first.text + " and more"
    second = bench.submit(again)
    bench.finish()

    assert second.text == again[::-1]
    assert bench.engine.stats.tokens_reused == len("tell me of llamas" + first.text)


def test_two_chats_in_turn_keep_both_their_caches() -> None:
    bench = Bench(n_slots=2)
    chats = ["the first of two conversations", "quite another conversation"]
    for round_ in range(3):
        for index in range(2):
            reader = bench.submit(chats[index])
            bench.finish()
            assert reader.text == chats[index][::-1]
            if round_:
                assert reader.ends[0].num_reused >= len(chats[index]) - 4
            chats[index] += reader.text[:3]


def test_a_failing_leader_does_not_take_its_followers_with_it() -> None:
    bench = Bench(n_slots=3)
    leader = bench.submit("a preamble that they share !fail")
    followers = [bench.submit(f"a preamble that they share {number}") for number in range(2)]
    bench.finish()

    assert leader.end is End.FAILED
    assert [f.text for f in followers] == [f"a preamble that they share {number}"[::-1] for number in range(2)]


class Immovable(ScriptedBackend):
    """A model whose caches can neither be copied nor moved, and are garbage where that was tried."""

    def __init__(self, *, n_slots: int = 4) -> None:
        super().__init__(n_slots=n_slots)
        self.tried: list[str] = []

    def copy(self, source: int, targets: Sequence[int], num_tokens: int) -> None:
        self.tried.append("copy")
        for target in targets:
            self._caches[target] = [0] * 7
        raise DecodeFailed("scripted: no copies")

    def move(self, source: int, target: int) -> None:
        self.tried.append("move")
        self._caches[target] = [0] * 7
        raise DecodeFailed("scripted: no moves")


def test_prefixes_that_cannot_be_copied_are_computed() -> None:
    backend = Immovable()
    bench = Bench(backend)
    prompts = [f"a beginning that all of them share, {number}" for number in range(4)]
    readers = [bench.submit(prompt) for prompt in prompts]
    bench.finish()

    assert [reader.text for reader in readers] == [prompt[::-1] for prompt in prompts]
    assert "copy" in backend.tried
    assert {reader.ends[0].num_reused for reader in readers} == {0}
    assert bench.engine.stats.tokens_reused == 0


def test_a_copy_of_what_an_earlier_copy_should_have_brought_is_not_made() -> None:
    """The third slot holds a prefix; the first sequence is to take it from there, the second from the first."""
    backend = Immovable()
    bench = Bench(backend)
    for prompt in ("one", "two", "a beginning that some have in common"):
        bench.submit(prompt, max_new=3)
    bench.finish()
    prompts = ["a beginning that some have, A", "a beginning that some have, B"]
    readers = [bench.submit(prompt) for prompt in prompts]
    bench.finish()

    assert [reader.text for reader in readers] == [prompt[::-1] for prompt in prompts]
    assert backend.tried == ["copy"]


def test_a_cache_that_cannot_be_saved_is_let_go() -> None:
    backend = Immovable(n_slots=3)
    bench = Bench(backend)
    bench.submit("the first chat, which leaves its cache")
    bench.finish()
    pair = [bench.submit("quite another one"), bench.submit("and again another")]
    bench.finish()

    assert [reader.text for reader in pair] == ["eno rehtona etiuq", "rehtona niaga dna"]
    assert backend.tried == ["copy"]


def test_a_sequence_that_cannot_be_moved_stays_and_is_not_tried_again() -> None:
    backend = Immovable()
    bench = Bench(backend)
    prompts = ["ab", "one that answers long enough", "and this is another of that kind"]
    readers = [bench.submit(prompt, max_new=200 if len(prompt) > 2 else 1) for prompt in prompts]
    bench.finish()

    assert [reader.text for reader in readers] == ["b", *(prompt[::-1] for prompt in prompts[1:])]
    assert backend.tried == ["move"]


def test_nothing_to_compute_is_refused_at_once() -> None:
    bench = Bench()
    reader, vectors = bench.submit("", job="empty"), Reader()
    bench.engine.submit(EmbedRequest(JobId("no text"), (), None, vectors.on_end))

    assert (reader.end, vectors.end) == (End.FAILED, End.FAILED)
    assert isinstance(reader.ends[0].error, PromptEmpty)
    assert not bench.engine.is_busy


def test_the_serial_recipe_computes_one_sequence_at_a_time_and_all_in_turn() -> None:
    bench = Bench(ScriptedBackend(n_slots=3, recipe="serial"))
    readers = [bench.submit(f"number {number}") for number in range(3)]
    bench.finish()

    assert [r.text for r in readers] == [f"number {number}"[::-1] for number in range(3)]
    assert all(len(step) == 1 for step in bench.backend.steps)
    assert [step[0].seq_id for step in bench.backend.steps[:6]] == [0, 1, 2, 0, 1, 2]
