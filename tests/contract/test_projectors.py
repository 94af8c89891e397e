"""Projectors of several families in the real library: that they load, and that a job with their images has the same
answer in any company, with a beginning that was copied, and after it was taken out of its slot. The same of sounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from packtrain.broker.errors import MediaUnreadable, ModelLoadFailed
from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.backends.llama_cpp_selftest import media_self_test
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.media import MediaRows, Seen, place
from packtrain.workers.engine.sequence import Ended, SequenceRequest, Tokens
from packtrain.workers.load_options import LoadOptions
from tests.support.tiny_model import FIRST_BYTE, write_tiny_model
from tests.support.tiny_projectors import FAMILIES, MARKS, write_tiny_projector

pytestmark = pytest.mark.contract

N_SLOTS, N_CTX, NUM_NEW = 4, 512, 12
#: Whose sounds have 750 rows.
LONG = {"qwen2a": 3072}
#: Whose models have positions of several dimensions.
PLANE = ("qwen2vl_merger", "qwen2.5vl_merger", "qwen2a")


def loaded(folder: Path, family: str, *, special: tuple[str, ...] | None = None) -> LlamaCppBackend:
    model = write_tiny_model(
        folder / "tiny.gguf",
        kind=gguf.GGMLQuantizationType.Q8_0,
        architecture="qwen2vl" if family in PLANE else "llama",
        special=MARKS.get(family, ()) if special is None else special,
    )
    return LlamaCppBackend(
        model, model="tiny", n_slots=N_SLOTS, n_ctx=LONG.get(family, N_CTX), n_threads=1,
        options=LoadOptions(numerics="deterministic"),
        projector=write_tiny_projector(folder / "tiny-mmproj.gguf", family),
    )  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppBackend]:
    found = loaded(tmp_path_factory.mktemp("tiny"), request.param)
    yield found
    found.shutdown()


def picture(seed: int, height: int = 64, width: int = 64) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sound(seed: int, seconds: float = 1.0) -> Any:
    return np.sin(np.arange(int(16_000 * seconds)) * 0.03 * seed**2).astype(np.float32)  # of one tone


def taken(backend: LlamaCppBackend, seed: int) -> Seen:
    """What a sound is to a model that hears, else a picture."""
    return backend.hear(sound(seed, 25)) if backend.hears else backend.see(picture(seed))


def images(seen: Seen) -> list[MediaRows]:
    return [piece for piece in seen if isinstance(piece, MediaRows)]


class Asking:
    """An engine on the backend, and what comes of prompts."""

    def __init__(self, backend: LlamaCppBackend) -> None:
        self.engine = Engine(backend, clock=time.monotonic, prefill_budget=16)
        self.tokens: dict[str, list[int]] = {}
        self.scores: dict[str, list[float]] = {}
        self.ends: dict[str, Ended] = {}

    def submit(self, name: str, text: str, pictures: dict[str, Seen], *, is_bulk: bool = False) -> None:
        """Ask about pictures, by letters that stand for them: `<A> what?`."""
        prompt, spans = [1], []
        for char in text:
            if char in pictures:
                tokens, found = place(char.encode().hex() * 32, pictures[char], len(prompt))
                prompt += tokens
                spans += found
            else:
                prompt.append(FIRST_BYTE + ord(char))
        self.tokens[name] = []
        self.scores[name] = []
        self.engine.submit(
            SequenceRequest(
                JobId(name), tuple(prompt), SamplingParams(temperature=0, ignore_eos=True, logprobs=0), 0, NUM_NEW,
                lambda news, name=name: self._take(name, news),  # type: ignore[misc]
                lambda ended, name=name: self.ends.update({name: ended}),  # type: ignore[misc]
                is_bulk=is_bulk, media=tuple(spans),
            )
        )  # fmt: skip

    def _take(self, name: str, news: Tokens) -> None:
        self.tokens[name] += news.tokens
        self.scores[name] += [entry.logprob for entry in news.logprobs]

    def finish(self) -> None:
        while self.engine.is_busy:
            self.engine.step()


def test_a_picture_or_sound_is_rows_of_the_models_width_and_another_one_others(backend: LlamaCppBackend) -> None:
    first, again, other = (images(taken(backend, seed)) for seed in (1, 1, 2))

    assert all(image.rows.shape == (image.count, 64) for image in first)
    assert np.isfinite(np.concatenate([image.rows for image in first])).all()
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].rows, other[0].rows)


@pytest.mark.parametrize("size", [(4, 4), (4, 300), (300, 4), (31, 77)])
def test_odd_sizes_are_seen_or_refused(backend: LlamaCppBackend, size: tuple[int, int]) -> None:
    if not backend.sees:
        return
    try:
        assert images(backend.see(picture(1, *size)))
    except MediaUnreadable as refused:
        assert "cannot" in str(refused) or "rows" in str(refused)  # noqa: PT017


def test_a_picture_of_more_tokens_than_a_slot_holds_is_refused_before_it_is_looked_at(tmp_path: Path) -> None:
    found = loaded(tmp_path, "idefics3")

    with pytest.raises(MediaUnreadable, match=r"4096 x 4096 is \d+ tokens, and a slot holds 512"):
        found.see(np.zeros((4096, 4096, 3), np.uint8))
    with pytest.raises(MediaUnreadable, match="send a smaller one"):
        found.see(picture(1, 4, 16_384))
    assert images(found.see(picture(1)))
    found.shutdown()


def test_long_sounds_are_several_pieces_and_too_long_ones_refused(backend: LlamaCppBackend) -> None:
    if not backend.hears:
        assert backend.sample_rate == 0
        return
    assert backend.sample_rate == 16_000
    short, long = (images(backend.hear(sound(1, seconds))) for seconds in (0.05, 31))

    assert (len(short), len(long)) == (1, 2)
    assert all(piece.is_causal and piece.places is None for piece in long)
    with pytest.raises(MediaUnreadable, match=r"a sound of 299\.0 s is \d+ tokens, and a slot holds"):
        backend.hear(sound(1, 299))


def test_company_and_cuts_change_no_bit(backend: LlamaCppBackend) -> None:
    assert backend.shape.recipe == "batched"
    assert media_self_test(backend, "batched", backend) == ""


def test_answers_about_images_are_their_own_in_any_company(backend: LlamaCppBackend) -> None:
    pictures = {"A": taken(backend, 3), "B": taken(backend, 4)}
    prompts = {
        "a": "A what is this?", "b": "B what is this?", "aa": "A which colour has this one?", "ab": "A and B?",
        "late": "this is a long text before the image A tell me", "text": "no image here, as ever",
        "ba": "B and A, or A again?",
    }  # fmt: skip
    if backend.shape.n_ctx > N_CTX:  # of 750 rows few are enough
        prompts = {name: prompts[name] for name in ("a", "b", "aa", "text")}
    alone: dict[str, list[int]] = {}
    scores: dict[str, list[float]] = {}
    for name, prompt in prompts.items():
        asking = Asking(backend)
        for slot in range(N_SLOTS):
            backend.truncate(slot, 0)
        asking.submit(name, prompt, pictures)
        asking.finish()
        alone |= asking.tokens
        scores |= asking.scores
    together = Asking(backend)
    for round_ in range(2):  # the second finds what the first has left in the slots
        for number, (name, prompt) in enumerate(prompts.items()):
            together.submit(f"{name}/{round_}", prompt, pictures, is_bulk=number % 3 == 0)
        together.finish()

    assert {end.end for end in together.ends.values()} == {"length"}
    assert together.tokens == {f"{name}/{round_}": alone[name] for round_ in range(2) for name in prompts}
    assert together.scores == {f"{name}/{round_}": scores[name] for round_ in range(2) for name in prompts}
    assert together.engine.stats.tokens_reused > 0
    assert scores["a"] != scores["b"]


def test_marks_that_a_vocabulary_has_not_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="marks around a picture of 64 x 64 that the model's vocabulary has not"):
        loaded(tmp_path, "idefics3", special=())


def test_a_projector_for_another_model_is_refused_with_the_librarys_words(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf")
    other = write_tiny_projector(tmp_path / "other.gguf", "mlp", width=96)

    with pytest.raises(ModelLoadFailed, match=r"other.gguf beside 'tiny': .*mismatch"):
        LlamaCppBackend(model, model="tiny", n_slots=1, n_ctx=256, n_threads=1, projector=other)
