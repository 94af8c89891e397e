"""Images among tokens: places, positions, cuts, and steps that alternate with text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.media import MediaRows, MediaTurns, Span, num_alike, place, position, whole_before
from packtrain.workers.engine.reuse import MIN_SHARED
from packtrain.workers.engine.scheduler import SERIAL_CHUNK, plan_image_step, plan_serial_step, plan_step
from packtrain.workers.engine.sequence import Ended, Sequence, SequenceRequest, Tokens
from packtrain.workers.engine.text import TextStream

pytestmark = pytest.mark.unit

SHA = "ab" * 32


def rows(count: int, **fields: Any) -> MediaRows:
    return MediaRows(np.zeros((count, 2), np.float32), fields.pop("num_positions", count), **fields)


def asking(tokens: list[int], spans: list[Span], name: str, texts: list[str] | None = None) -> SequenceRequest:
    def on_tokens(news: Tokens) -> None:
        if texts is not None:
            texts.append(news.text)

    def on_end(ended: Ended) -> None:
        if texts is not None:
            texts.append(f"{ended.tail} {ended.end} {ended.num_reused}")

    params = SamplingParams(temperature=0)
    return SequenceRequest(JobId(name), tuple(tokens), params, 0, 30, on_tokens, on_end, media=tuple(spans))


def sequence(before: int, image: MediaRows | None, after: int, *, number: int = 0, cached: int = 0) -> Sequence:
    """One with so many tokens of text around an image."""
    tokens, spans = [7] * before, list[Span]()
    if image:
        numbers, spans = place(SHA, (image,), before)
        tokens += numbers
    tokens += [8] * after
    request = asking(tokens, spans, f"job-{number}")
    found = Sequence(request, number, number, TextStream(()), list(tokens), has_begun=True)
    found.num_cached = cached
    return found


def test_the_same_image_has_the_same_numbers_and_another_one_others() -> None:
    seen = ((5, 6), rows(3), (9,), rows(2))
    tokens, spans = place(SHA, seen, 10)

    assert [(span.start, span.end) for span in spans] == [(12, 15), (16, 18)]
    assert tokens[:2] + tokens[5:6] == [5, 6, 9]
    assert len({*tokens[2:5], *tokens[6:]}) == 5
    assert all(token < 0 for token in [*tokens[2:5], *tokens[6:]])
    assert place(SHA, seen, 0)[0] == tokens
    assert not set(place("cd" * 32, seen, 0)[0]) & {*tokens[2:5], *tokens[6:]}


def test_text_ahead_ends_where_an_image_begins_and_the_image_where_text_does() -> None:
    spans = [Span(3, rows(4)), Span(7, rows(2))]

    assert [num_alike(spans, begin, 12) for begin in range(12)] == [3, 2, 1, 4, 3, 2, 1, 2, 1, 3, 2, 1]


def test_a_prefix_may_end_within_an_image_unless_its_rows_look_at_each_other() -> None:
    places = np.zeros((4, 4), np.int32)

    assert whole_before([Span(3, rows(4))], 5) == 5
    assert whole_before([Span(3, rows(4))], 5, all_whole=True) == 3
    assert whole_before([Span(3, rows(4, is_causal=False))], 5) == 3
    assert whole_before([Span(3, rows(4, places=places))], 5) == 3
    assert [whole_before([Span(3, rows(4, is_causal=False))], count) for count in (2, 3, 7, 9)] == [2, 3, 7, 9]


def test_positions_advance_by_what_an_image_takes_of_them() -> None:
    flat, square = Span(2, rows(4)), Span(6, rows(4, num_positions=2, places=np.zeros((4, 4), np.int32)))

    assert [position([flat, square], index) for index in range(13)] == [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 8, 9, 10]


def test_a_step_has_text_or_images_and_they_alternate_while_both_wait() -> None:
    turns = MediaTurns()
    looking, talking = sequence(0, rows(4), 3), sequence(5, None, 0, number=1, cached=4)

    assert turns.next([looking, talking]) == ([looking], True)
    assert turns.next([looking, talking]) == ([talking], False)
    assert turns.next([looking, talking]) == ([looking], True)
    assert turns.next([looking]) == ([looking], True)
    looking.num_cached = 4
    assert turns.next([looking, talking]) == ([looking, talking], False)


def test_text_before_an_image_is_computed_up_to_it() -> None:
    (row,) = plan_step([sequence(5, rows(4), 3)], n_batch=64, prefill_budget=8)

    assert (row.count, row.wants_token, row.media) == (5, False, None)


def test_a_step_of_images_is_as_long_as_a_prompt_may_be_beside_answers() -> None:
    old, young = sequence(0, rows(20), 1), sequence(0, rows(20), 1, number=1)

    beside = plan_image_step([old, young], n_batch=64, prefill_budget=16, others_decode=True)
    alone = plan_image_step([old, young], n_batch=64, prefill_budget=16, others_decode=False)

    assert [(row.sequence.order, row.count) for row in beside] == [(0, 16)]
    assert [(row.sequence.order, row.count) for row in alone] == [(0, 20), (1, 20)]
    assert beside[0].media is not None
    assert beside[0].media.count == 16


def test_an_image_whose_rows_look_at_each_other_is_in_one_step() -> None:
    old = sequence(0, rows(20, is_causal=False), 1)
    young = sequence(0, rows(20, is_causal=False), 1, number=1)

    steps = plan_image_step([old, young], n_batch=64, prefill_budget=16, others_decode=True)

    assert [(row.sequence.order, row.count) for row in steps] == [(0, 20)]


def test_the_serial_recipe_cuts_a_prompt_at_its_images_and_at_its_borders() -> None:
    found = sequence(100, rows(60), 200)
    counts = []
    while found.num_pending:
        (row,) = plan_serial_step([found])
        counts.append(row.count)
        found.num_cached += row.count

    assert counts == [100, 60, 2 * SERIAL_CHUNK - 160, 360 - 2 * SERIAL_CHUNK]


@pytest.mark.parametrize("recipe", ["fast", "batched", "serial"])
def test_images_and_texts_share_an_engine_and_an_image_is_computed_once(recipe: Any) -> None:
    backend = ScriptedBackend(n_slots=4, n_ctx=256, recipe=recipe, sees=True)
    engine = Engine(backend, clock=lambda: 0.0, prefill_budget=8)
    texts: dict[str, list[str]] = {}
    for name in ("ab", "cd"):
        for question in ("Q1", "Q2"):
            numbers, spans = place(name * 32, (rows(40),), 2)
            prompt = [*b"<<", *numbers, *question.encode()]
            engine.submit(asking(prompt, spans, name + question, texts.setdefault(name + question, [])))
    for number in range(4):
        engine.submit(asking(list(b"plain %d" % number), [], str(number), texts.setdefault(str(number), [])))
    while engine.is_busy:
        engine.step()

    said = {name: "".join(parts).rsplit(" ", 1) for name, parts in texts.items()}
    for name in ("ab", "cd"):
        assert {said[f"{name}{question}"][0] for question in ("Q1", "Q2")} == {
            f"{question[::-1]}{'#' * (30 - 2)} length" for question in ("Q1", "Q2")
        }
    assert [said[str(number)][0] for number in range(4)] == [f"{number} nialp stop" for number in range(4)]
    num_rows = sum(len(row.tokens) for step in backend.steps for row in step if row.media)
    if recipe == "serial":  # no prefix shorter than one of its chunks is shared
        assert num_rows == 4 * 40
    else:  # but for less than is worth a wait
        assert 2 * 40 <= num_rows < 2 * 40 + MIN_SHARED
        assert min(sorted(int(said[name][1]) for name in said if "Q" in name)[2:]) > 42 - MIN_SHARED
