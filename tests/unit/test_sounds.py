"""Headers of sounds, what is taken of them, and what they become."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.errors import InvalidParameter, MediaUnreadable, MediaUnsupported
from packtrain.broker.job_spec import JobSpec, parse_spec
from packtrain.broker.media import MediaRef, joined, kind_of, unjoined
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.senses import check_senses, may_move
from packtrain.broker.sounds import MAX_SECONDS, NoSound, check_sound, part_of_sound, read_sound_header
from packtrain.client.request import build_spec
from packtrain.workers.sounds import decode
from tests.support.pictures import part, png
from tests.support.recordings import encoded, hostile, wav

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("WAV", {}),
        ("WAV", {"subtype": "PCM_24", "channels": 2, "rate": 44_100}),
        ("WAV", {"subtype": "FLOAT"}),
        ("WAV", {"subtype": "PCM_U8", "rate": 8000}),
        ("WAVEX", {"channels": 2}),
        ("MP3", {}),
        ("MP3", {"rate": 44_100, "channels": 2}),
        ("MP3", {"rate": 8000}),
    ],
)
def test_kind_rate_and_length_are_read_as_libsndfile_writes_them(kind: str, options: dict[str, Any]) -> None:
    header = read_sound_header(encoded(kind, 1.5, **options))

    assert (header.kind, header.rate, header.channels) == (
        kind[:3].lower(), options.get("rate", 16_000), options.get("channels", 1),
    )  # fmt: skip
    assert header.seconds == pytest.approx(1.5, abs=0.25)  # of an MP3 whole frames


@pytest.mark.parametrize(("what", "data"), list(hostile()), ids=lambda value: value if isinstance(value, str) else "")
def test_no_hostile_sound_is_taken_at_the_door_or_decoded(what: str, data: bytes) -> None:
    try:
        check_sound(data)
    except ValueError as refused:
        assert "the sound" in str(refused)  # noqa: PT017
    with pytest.raises(MediaUnreadable, match="a sound of the chat cannot be read"):
        decode(data, 16_000)


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"RIFF\0\0\0\0WAVEfmt ", b"\xff\xfb\x90\x00", b"ID3", wav()[:60]])
)
def test_whatever_the_bytes_are_there_is_a_header_or_a_reason(data: bytes, begin: bytes) -> None:
    try:
        read_sound_header(begin + data)
    except NoSound as reason:
        assert str(reason)  # noqa: PT017


def test_a_header_that_claims_hours_is_believed_as_far_as_there_are_bytes() -> None:
    assert read_sound_header(wav(0.5, claimed=2**32 - 1)).seconds == pytest.approx(0.5)
    with pytest.raises(ValueError, match=rf"lasts {MAX_SECONDS + 1}.00 s"):
        check_sound(wav(MAX_SECONDS + 1, rate=8000))


@pytest.mark.parametrize(
    "data", [wav(1), wav(1, rate=44_100, channels=2), encoded("WAV", 1, subtype="FLOAT"), encoded("MP3", 1)]
)
def test_a_sound_becomes_one_channel_at_the_models_rate(data: bytes) -> None:
    heard = decode(data, 16_000)

    loudest = np.abs(np.fft.rfft(heard * np.hanning(len(heard)))).argmax() * 16_000 / len(heard)
    assert len(heard) == pytest.approx(16_000, abs=2400)
    assert heard.dtype == np.float32
    assert loudest == pytest.approx(440, abs=2)


def test_samples_that_are_no_numbers_are_silence() -> None:
    broken = bytearray(encoded("WAV", 1, subtype="FLOAT"))
    broken[-4000:] = np.full(1000, np.nan, "<f4").tobytes()

    assert np.isfinite(decode(bytes(broken), 16_000)).all()


def test_what_is_an_image_and_what_a_sound_is_told_by_its_bytes() -> None:
    assert [kind_of(data) for data in (png(8, 8), png(8, 8)[:20], wav(), encoded("MP3"), b"?")] == [
        "image", "image", "audio", "audio", "audio",
    ]  # fmt: skip


def heard(**options: Any) -> JobSpec:
    return build_spec("m", "What?", raw=False, stream=False, expires_in=None, options=options)


def test_python_takes_paths_and_bytes_and_puts_sounds_behind_images(tmp_path: Path) -> None:
    path, data = tmp_path / "a.wav", wav()
    path.write_bytes(data)
    first = heard(audio=data)

    assert {heard(audio=given).media for given in (path, str(path), [data], (path,))} == {first.media}
    assert (first.media[0].kind, first.messages[0].content) == ("audio", "\nWhat?")
    both = heard(images=png(8, 8), audio=data)
    assert [(ref.kind, ref.at) for ref in both.media] == [("image", 0), ("audio", 1)]
    assert "data" not in both.to_json()
    again = parse_spec(json.loads(both.to_json(with_media=True)))
    assert [(ref.kind, ref.data) for ref in again.media] == [("image", png(8, 8)), ("audio", data)]


@pytest.mark.parametrize(
    ("sound", "said"),
    [
        ("no-such.wav", "cannot be read"),
        (b"text", "neither WAV nor MP3"),
        (png(8, 8), "neither WAV nor MP3"),
        (7, "not int"),
        ("data:audio/wav;base64,AAAA", "cannot be read"),
    ],
)
def test_python_says_what_is_wrong_with_a_sound(sound: object, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said) as refused:
        heard(audio=sound)
    assert refused.value.data["field"] == "audio"


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "input_audio"},
        {"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"text").decode(), "format": "wav"}},
        {"type": "input_audio", "input_audio": "AAAA"},
    ],
)
def test_a_part_without_a_sound_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="sound"):
        parse_spec({"model": "m", "messages": [{"role": "user", "content": [wrong]}]})


_TEXTS = st.text("ab\n", min_size=1, max_size=4)
_PARTS = st.lists(st.one_of(_TEXTS, st.sampled_from([png(8, 8), wav()])), min_size=1, max_size=6)


@given(_PARTS)
def test_parts_that_were_joined_are_the_same_parts_again(given_parts: list[str | bytes]) -> None:
    def written(piece: str | bytes) -> dict[str, Any]:
        if isinstance(piece, str):
            return {"type": "text", "text": piece}
        return part(piece) if kind_of(piece) == "image" else part_of_sound(piece)

    content, fields = joined([written(piece) for piece in given_parts])
    media = [MediaRef(**ref) for ref in fields]
    again = [piece.data if isinstance(piece, MediaRef) else piece for piece in unjoined(str(content), media)]

    assert joined([written(piece) for piece in again if piece is not None]) == (content, fields)


def test_a_model_that_sees_and_one_that_hears_are_told_apart() -> None:
    models = [
        ModelInfo(id="m"), ModelInfo(id="eyes", modalities=("text", "vision")),
        ModelInfo(id="all", modalities=("text", "vision", "audio")), ModelInfo(id="far", remote="host big"),
    ]  # fmt: skip

    check_senses(heard(audio=wav()).model_copy(update={"model": "all"}), models)
    with pytest.raises(MediaUnsupported, match=r"'eyes' takes text and vision alone, and the chat has sounds; .*: all"):
        check_senses(heard(audio=wav()).model_copy(update={"model": "eyes"}), models)
    with pytest.raises(MediaUnsupported, match=r"`modalities` of \[models\.far\.remote\], if host big hears"):
        check_senses(heard(audio=wav()).model_copy(update={"model": "far"}), models)


def test_a_job_with_media_may_move_where_all_targets_take_them() -> None:
    models = [
        ModelInfo(id="ears", modalities=("text", "audio")), ModelInfo(id="all", modalities=("text", "vision", "audio")),
        ModelInfo(id="text"), ModelInfo(id="any", alias_of="ears", targets=("ears", "text")),
        ModelInfo(id="best", alias_of="ears", targets=("ears", "all", "gone")),
    ]  # fmt: skip
    job = heard(audio=wav())

    assert not may_move(job.model_copy(update={"model": "any"}), models)
    assert may_move(job.model_copy(update={"model": "best"}), models)
    assert may_move(job.model_copy(update={"model": "ears"}), models)
