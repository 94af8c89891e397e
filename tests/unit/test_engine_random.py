"""The engine under random arrivals, cancels, failures and interrupts: each answer is that of the job alone, to the bit.

The model here keeps beside each cached token how it was computed, and gives a hash over these as its logprob. So a
prefix taken from the wrong place, or cut into other chunks than the serial recipe allows, shows in the answer.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import cast

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from packtrain.broker.fields import Recipe
from packtrain.broker.ids import JobId
from packtrain.broker.pieces import PromptLogprob
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.adapters import AdapterSet
from packtrain.workers.backends.base import DecodeFailed, Interrupted, Parked, Sampled, StepRows
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.engine import parking, places
from packtrain.workers.engine.caches import MIN_LEFT_TO_MOVE
from packtrain.workers.engine.engine import Engine, EngineBroken
from packtrain.workers.engine.sequence import End, Ended, SequenceRequest, Tokens
from packtrain.workers.load_options import Speculation

pytestmark = pytest.mark.unit

MAX_NEW = 12
N_CTX = 512
PIRATE, HALF, POLITE = (("pirate", 1.0),), (("pirate", 0.5),), (("polite", 1.0),)


@dataclass(frozen=True, slots=True)
class _Kept(Parked):
    inner: Parked
    ways: tuple[tuple[int, int, int], ...]


class Exact(ScriptedBackend):
    """A scripted model that knows how each token in its caches was computed, and whose steps break off on demand.

    Args:
        troubles: What becomes of the next steps: "" nothing, "fail" or "stop" after a part of the rows was written.
        copy_troubles: Whether the next copies and moves, into a slot or out of it, fail and leave garbage.
    """

    def __init__(
        self,
        n_slots: int,
        recipe: Recipe,
        *,
        can_share: bool,
        troubles: Sequence[str] = (),
        copy_troubles: Sequence[bool] = (),
    ) -> None:
        super().__init__(n_slots=n_slots, n_ctx=N_CTX, recipe=recipe)
        self._shape = replace(self._shape, can_share=can_share, n_batch=N_CTX)
        self._ways: list[list[tuple[int, int, int]]] = [[] for _ in range(n_slots)]
        self._troubles = list(reversed(troubles))
        self._copy_troubles = list(reversed(copy_troubles))
        self.num_failed_copies = 0
        self.parked: list[Parked] = []
        self.before_step: Callable[[], None] = lambda: None

    def cache(self, slot: int) -> list[int]:
        return self._caches[slot]

    def truncate(self, seq_id: int, num_cached: int) -> int:
        if not self._shape.can_share and num_cached < len(self._caches[seq_id]):
            num_cached = 0
        del self._ways[seq_id][num_cached:]
        return super().truncate(seq_id, num_cached)

    def copy(self, source: int, targets: Sequence[int], num_tokens: int) -> None:
        assert self._shape.can_share
        assert source not in targets
        assert len(self._caches[source]) >= num_tokens
        self._trouble_copies(targets)
        super().copy(source, targets, num_tokens)
        for target in targets:
            self._ways[target] = self._ways[source][:num_tokens]

    def move(self, source: int, target: int) -> None:
        assert self._shape.can_share
        self._trouble_copies([target])
        super().move(source, target)
        self._ways[target] = list(self._ways[source])

    def park(self, seq_id: int) -> Parked:
        self._trouble_copies([])
        self.parked.append(_Kept(len(self._caches[seq_id]), super().park(seq_id), tuple(self._ways[seq_id])))
        return self.parked[-1]

    def unpark(self, parked: Parked, seq_id: int) -> None:
        assert isinstance(parked, _Kept)
        self.parked.remove(parked)
        super().unpark(parked.inner, seq_id)
        self._ways[seq_id] = list(parked.ways)
        self._trouble_copies([seq_id])

    def discard(self, parked: Parked) -> None:
        self.parked.remove(parked)

    def _trouble_copies(self, targets: Sequence[int]) -> None:
        if self._copy_troubles and self._copy_troubles.pop():
            for target in targets:
                self._caches[target], self._ways[target] = [0] * 3, [(-1, -1, -1)] * 3
            self.num_failed_copies += 1
            raise DecodeFailed("scripted trouble with a copy")

    def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool] | None) -> list[Sampled]:
        self.before_step()
        trouble = self._troubles.pop() if self._troubles else ""
        if trouble:
            for row in rows[: (len(rows) + 1) // 2]:
                part = row.tokens[: (len(row.tokens) + 1) // 2]
                self._caches[row.seq_id] += part
                self._ways[row.seq_id] += [(-1, -1, -1)] * len(part)
            raise Interrupted if trouble == "stop" else DecodeFailed("scripted trouble")
        for row in rows:
            # Only the serial recipe computes other bits in other chunks, or beside other rows with logits.
            way = (row.start, len(row.tokens), len(row.scored)) if self._shape.recipe == "serial" else (0, 0, 0)
            self._ways[row.seq_id] += [way] * len(row.tokens)
        return super().step(rows, should_stop)

    def _scored(self, seq_id: int, num_cached: int, token: int) -> Sampled:
        return replace(super()._scored(seq_id, num_cached, token), logprob=self._hash(seq_id, num_cached))

    def _sampled(self, seq_id: int, num_cached: int) -> Sampled:
        return replace(super()._sampled(seq_id, num_cached), logprob=self._hash(seq_id, num_cached))

    def _hash(self, slot: int, num_cached: int) -> float:
        caches, ways, computed_with = self._caches[slot], self._ways[slot], self._computed_with[slot]
        known = (*caches[:num_cached], *ways[:num_cached], *computed_with[:num_cached])
        return float(-(zlib.crc32(repr(known).encode())))


@dataclass
class Asked:
    """A request and what came of it."""

    request: SequenceRequest
    told: list[tuple[int, float]] = field(default_factory=list)
    ends: list[Ended] = field(default_factory=list)

    def on_tokens(self, tokens: Tokens) -> None:
        assert not self.ends
        self.told += [(entry.token, entry.logprob) for entry in tokens.logprobs]


def _request(
    name: str,
    prompt: bytes,
    max_new: int,
    resumed: Sequence[int] = (),
    deadline: float | None = None,
    adapters: AdapterSet = (),
    *,
    scores: bool = False,
    is_bulk: bool = False,
) -> Asked:
    asked: Asked
    params = SamplingParams(logprobs=0, prompt_logprobs=0 if scores else None)
    request = SequenceRequest(
        JobId(name), tuple(prompt), params, 1, max_new, lambda t: asked.on_tokens(t), lambda e: asked.ends.append(e),
        tuple(resumed), deadline, adapters, is_bulk,
    )  # fmt: skip
    asked = Asked(request)
    return asked


@cache
def _alone(
    prompt: bytes, recipe: Recipe, *, can_share: bool, adapters: AdapterSet = ()
) -> tuple[tuple[int, float], ...]:
    return tuple(_run_alone(prompt, recipe, can_share=can_share, adapters=adapters, scores=False).told)


@cache
def _scores_alone(
    prompt: bytes, recipe: Recipe, *, can_share: bool, adapters: AdapterSet = ()
) -> tuple[PromptLogprob, ...]:
    asked = _run_alone(prompt, recipe, can_share=can_share, adapters=adapters, scores=True)
    return asked.ends[0].prompt_logprobs


def _run_alone(prompt: bytes, recipe: Recipe, *, can_share: bool, adapters: AdapterSet, scores: bool) -> Asked:
    engine = Engine(Exact(1, recipe, can_share=can_share), clock=lambda: 0)
    asked = _request("alone", prompt, MAX_NEW, adapters=adapters, scores=scores)
    engine.submit(asked.request)
    while engine.is_busy:
        engine.step()
    assert asked.ends[0].end in (End.STOP, End.LENGTH)
    return asked


def _check_caches(engine: Engine, backend: Exact) -> None:
    """What the engine believes of each slot is what its cache holds."""
    for sequence in engine._places.live.values():
        held = backend.cache(sequence.seq_id)
        if sequence.has_begun:
            assert held == sequence.tokens[: sequence.num_cached]
        else:
            left = engine._places.caches._leftover[sequence.seq_id]
            assert held[: len(left.tokens)] == left.tokens
    for slot, kept in engine._places.caches._slots.retained().items():
        assert backend.cache(slot)[: len(kept.tokens)] == kept.tokens
    assert len(backend.parked) == len(engine._places.parked) == engine.stats.parked
    slots = [s.seq_id for s in engine._places.live.values()] + list(engine._places.caches._slots.retained())
    assert sorted(slots) == list(range(backend.shape.n_slots))


def _check_ranks(engine: Engine) -> None:
    """Sequences that run and will for a while have neighbouring ids."""
    live = list(engine._places.live.values())
    if engine._places.waiting or not all(s.computed_at for s in live):
        return
    if any(s.is_stuck for s in live):
        return
    if len(live) > 1 and all(s.request.max_new - s.num_output >= MIN_LEFT_TO_MOVE for s in live):
        event("ranks are closed")
        assert sorted(s.seq_id for s in live) == list(range(len(live)))


def _prompt(stem: int, length: int, own: int, *, fails: bool) -> bytes:
    letters = 2 if stem == 2 else 26  # of two letters much is guessed right
    shared = bytes(97 + random.Random(stem * 1000 + i).randrange(letters) for i in range(length))
    return shared + b"#" * (own % 3) + str(own).encode() + (b"!fail" if fails else b"")


def _run(backend: Exact, *prompts: bytes) -> list[Asked]:
    engine = Engine(backend, clock=lambda: 0)
    everything = [_request(f"j{number}", prompt, MAX_NEW) for number, prompt in enumerate(prompts)]
    for asked in everything:
        engine.submit(asked.request)
    for _ in range(1000):
        if not engine.is_busy:
            return everything
        engine.step()
    raise AssertionError("the engine never came to an end")


def test_where_nothing_can_be_shared_nothing_is_copied() -> None:
    backend = Exact(4, "batched", can_share=False)
    engine = Engine(backend, clock=lambda: 0)
    for number in range(3):
        pair = [_request(f"j{number}{n}", _prompt(number, 40, n, fails=False), 1 + 5 * n) for n in range(2)]
        for asked in pair:
            engine.submit(asked.request)
            engine.step()
        while engine.is_busy:
            engine.step()  # `copy` and `move` of this model refuse

    assert not any(kept.tokens for kept in engine._places.caches._slots.retained().values())


@pytest.mark.parametrize("recipe", ["batched", "serial"])
def test_one_that_always_fails_holds_up_no_other_where_a_part_cannot_be_forgotten(recipe: Recipe) -> None:
    """A repair sends each sequence back to its start; from there it must get past where the step failed."""
    good, bad = _run(Exact(2, recipe, can_share=False), b"a fine one", b"y" * 300 + b"!fail")

    assert (good.ends[0].end, bad.ends[0].end) == (End.STOP, End.FAILED)


@pytest.mark.parametrize("can_share", [True, False])
@pytest.mark.parametrize("failed_step", [1, 2, 3, 5])
def test_after_a_failed_step_the_serial_recipe_cuts_the_prompt_as_ever(failed_step: int, can_share: bool) -> None:
    prompt = _prompt(0, 260, 1, fails=False)
    (asked,) = _run(Exact(1, "serial", can_share=can_share, troubles=[""] * failed_step + ["fail"]), prompt)

    assert tuple(asked.told) == _alone(prompt, "serial", can_share=can_share)


_SUBMIT = st.tuples(
    st.just("submit"),
    st.tuples(
        st.integers(0, 2),  # stem
        st.sampled_from([0, 5, 20, 40, 127, 128, 130, 260, 400]),  # tokens shared with others of that stem
        st.integers(0, 12),
        st.sampled_from([False] * 9 + [True]),
        st.sampled_from([0, 1, 3, MAX_NEW, MAX_NEW]),
        st.sampled_from([0, 0, 0, 1, 5]),  # output that it resumes after
        st.sampled_from([None, None, None, 2]),  # deadline
        st.sampled_from([(), (), PIRATE, PIRATE, HALF, (*HALF, *POLITE)]),
        st.sampled_from([False, False, True]),  # scores of the prompt
        st.booleans(),  # is bulk
    ),
)
_SCRIPT = st.lists(
    st.one_of(
        _SUBMIT,
        _SUBMIT,
        st.tuples(st.just("end"), st.tuples(st.integers(0, 20), st.sampled_from([End.CANCELLED, End.LOST]))),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("wait"), st.integers(1, 3)),
    ),
    min_size=8,
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(
    script=_SCRIPT,
    n_slots=st.integers(1, 6),
    recipe=st.sampled_from(["batched", "serial"]),
    can_share=st.sampled_from([True, True, False]),
    prefill_budget=st.sampled_from([1, 16, 128]),
    speculation=st.sampled_from(["off", "prompt-lookup", "prompt-lookup"]),
    troubles=st.lists(st.sampled_from([""] * 6 + ["fail", "stop"]), max_size=60),
    copy_troubles=st.lists(st.booleans(), max_size=20),
    min_stay=st.sampled_from([1, 4]),
)
def test_every_answer_is_that_of_the_job_alone_whatever_happens_beside_it(
    script: list[tuple[str, tuple[object, ...] | int]],
    n_slots: int,
    recipe: Recipe,
    can_share: bool,
    prefill_budget: int,
    speculation: Speculation,
    troubles: list[str],
    copy_troubles: list[bool],
    min_stay: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:  # these answers are short
        patch.setattr(parking, "MIN_LEFT_TO_PARK", 1)
        patch.setattr(places, "MIN_STAY", min_stay)
        _check_script(
            script, Exact(n_slots, recipe, can_share=can_share, troubles=troubles, copy_troubles=copy_troubles),
            prefill_budget, speculation, has_trouble="fail" in troubles,
        )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_slots=st.integers(1, 4),
    recipe=st.sampled_from(["batched", "serial"]),
    can_share=st.sampled_from([True, True, False]),
    prefill_budget=st.sampled_from([16, 128]),
)
def test_in_a_crowd_where_many_are_parked_every_answer_is_that_of_the_job_alone(
    seed: int, n_slots: int, recipe: Recipe, can_share: bool, prefill_budget: int
) -> None:
    rng = random.Random(seed)
    odds = rng.choice([0, 0, 0.1])  # of trouble
    backend = Exact(
        n_slots,
        recipe,
        can_share=can_share,
        troubles=[rng.choice(["fail", "stop"]) if rng.random() < odds else "" for _ in range(200)],
        copy_troubles=[rng.random() < odds for _ in range(100)],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parking, "MIN_LEFT_TO_PARK", 1)
        patch.setattr(places, "MIN_STAY", rng.choice([1, 3]))
        script = [_dense_action(rng, can_share=can_share) for _ in range(60)]
        _check_script(script, backend, prefill_budget, rng.choice(["off", "prompt-lookup"]), has_trouble=odds > 0)


def _dense_action(rng: random.Random, *, can_share: bool) -> tuple[str, tuple[object, ...] | int]:
    draw = rng.random()
    if draw < 0.45:
        length = rng.choice([0, 5, 40, 127, 130] if can_share else [0, 5, 40])
        done = rng.choice([0, 0, 0, 1, 5])
        deadline = rng.choice([None] * 9 + [2])
        adapters = rng.choice([(), (), PIRATE, HALF])
        is_scored, is_bulk = rng.random() < 0.2, rng.random() < 0.6
        max_new = rng.choice([1, MAX_NEW, MAX_NEW, MAX_NEW])
        return "submit", (
            rng.randrange(3), length, rng.randrange(12), False, max_new, done, deadline, adapters, is_scored, is_bulk,
        )  # fmt: skip
    if draw < 0.9:
        return "step", rng.randrange(1, 6)
    if draw < 0.97:
        return "end", (rng.randrange(30), rng.choice([End.CANCELLED, End.LOST]))
    return "wait", 1


def _check_script(
    script: list[tuple[str, tuple[object, ...] | int]],
    backend: Exact,
    prefill_budget: int,
    speculation: Speculation,
    *,
    has_trouble: bool,
) -> None:
    recipe, can_share = backend.shape.recipe, backend.shape.can_share
    now = 0.0
    engine = Engine(backend, clock=lambda: now, prefill_budget=prefill_budget, speculation=speculation)
    planned = False  # the engine's next step is its plan, not a repetition one by one

    def before_step() -> None:
        nonlocal planned
        if planned and recipe == "batched" and can_share:
            _check_ranks(engine)
        planned = False

    backend.before_step = before_step
    everything: list[Asked] = []

    def step() -> None:
        nonlocal planned
        planned = True
        engine.step()
        _check_caches(engine, backend)

    try:
        for action, value in script:
            match action, value:
                case "submit", (
                    int(stem), int(length), int(own), bool(fails), int(max_new), int(done), deadline, its, bool(scores),
                    bool(is_bulk),
                ):  # fmt: skip
                    adapters = cast(AdapterSet, its)
                    prompt = _prompt(stem, length, own, fails=fails)
                    output = () if fails else _alone(prompt, recipe, can_share=can_share, adapters=adapters)
                    resumed = [token for token, _ in output[: min(done, max_new)]]
                    until = None if deadline is None else now + 2
                    name = f"j{len(everything)}"
                    asked = _request(name, prompt, max_new, resumed, until, adapters, scores=scores, is_bulk=is_bulk)
                    everything.append(asked)
                    engine.submit(asked.request)
                case "end", (int(number), End() as end):
                    engine.cancel(JobId(f"j{number}"), end)
                case "step", int(number):
                    for _ in range(number):
                        step()
                case "wait", int(number):
                    now += number
        for _ in range(20_000):
            if not engine.is_busy:
                break
            step()
    except EngineBroken:
        return  # too many that fail in a row: the process ends here
    assert not engine.is_busy, "the engine never came to an end"
    if engine.stats.parkings:
        event("parked")
    if backend.num_failed_copies:
        event("copies failed")
    if engine.stats.guessed_right:
        event("guessed right")
    if engine.stats.guessed > engine.stats.guessed_right:
        event("guessed wrong")

    for asked in everything:
        assert len(asked.ends) == 1
        end = asked.ends[0].end
        prompt, is_scored = bytes(asked.request.prompt), asked.request.params.prompt_logprobs is not None
        if b"!fail" in prompt:
            unless = () if asked.request.max_new else (End.LENGTH,)  # its last token was not computed
            assert end in (End.FAILED, End.CANCELLED, End.LOST, End.EXPIRED, *unless)
            continue
        alone = {"can_share": can_share, "adapters": asked.request.adapters}
        expected = _scores_alone(prompt, recipe, **alone) if is_scored else ()
        scores_found = asked.ends[0].prompt_logprobs
        assert scores_found in ((), expected)
        if end in (End.STOP, End.LENGTH):
            assert scores_found == expected
        done = len(asked.request.resumed)
        request = asked.request
        whole = _alone(prompt, recipe, can_share=can_share, adapters=request.adapters)[: request.max_new]
        assert asked.told == list(whole[done : done + len(asked.told)])
        if end in (End.STOP, End.LENGTH):
            assert done + len(asked.told) == len(whole)
        if end is End.FAILED:
            assert has_trouble
