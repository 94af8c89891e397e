"""Sounds through the doors of a fleet whose model hears: random weights, but real ones, of a few hundred KB.

Its answers are noise, and other noise for each sound; so a sound that got lost or changed on the way would show.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from packtrain.client import InvalidParameter, MediaUnreadable, MediaUnsupported, Packtrain
from packtrain.client.cli.main import app
from tests.support.bulk_runs import read_rows, write_rows
from tests.support.fleets import Fleet, fleet
from tests.support.pictures import png
from tests.support.recordings import encoded, hostile, wav
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_projectors import write_tiny_projector

pytestmark = pytest.mark.integration

WAIT_S = 60
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
QUESTION = "What do you hear?"
TEXT = {"type": "text", "text": QUESTION}
SOUND, OTHER = wav(25, hertz=300, rate=8000), encoded("MP3", 25)


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("home")
    home.joinpath("packtrain.toml").write_text("[defaults]\nslots = 4\ncontext = 512\n")
    models = home / "models"
    models.mkdir()
    for name, family in {"ears": "ultravox", "eyes": "mlp", "both": "mlp+ultravox", "text": ""}.items():
        write_tiny_model(models / f"{name}.gguf")
        if family:
            write_tiny_projector(models / f"{name}-mmproj.gguf", family)
    with fleet(home, http_port=0) as running:
        yield running


@pytest.fixture
def http(hearing: Fleet) -> Iterator[httpx2.Client]:
    assert hearing.running.gateway
    with httpx2.Client(base_url=hearing.running.gateway.url, timeout=WAIT_S) as client:
        yield client


def chat(sound: bytes, kind: str = "wav") -> list[dict[str, Any]]:
    given = {"data": base64.b64encode(sound).decode(), "format": kind}
    return [{"role": "user", "content": [{"type": "input_audio", "input_audio": given}, TEXT]}]


def first_logprob(completion: dict[str, Any]) -> float:
    return float(completion["choices"][0]["logprobs"]["content"][0]["logprob"])


def test_every_door_that_takes_sounds_gives_the_same_answer(
    hearing: Fleet, http: httpx2.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACKTRAIN_URL", hearing.url)
    path = tmp_path / "sound.wav"
    path.write_bytes(SOUND)
    body = {"model": "ears", "messages": chat(SOUND), "logprobs": True, **OPTIONS}
    row = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    posted = http.post("/v1/chat/completions", json=body)
    assert posted.status_code == 200, posted.text
    in_parts = [{"role": "user", "content": [{"type": "input_audio", "input_audio": path}, TEXT]}]
    file, out = write_rows(tmp_path / "in.jsonl", [row]), tmp_path / "out.jsonl"
    with Packtrain(str(http.base_url)) as over_http:
        results = {
            "Python": hearing.client.generate("ears", QUESTION, audio=path, logprobs=0, **OPTIONS),
            "Python, parts": hearing.client.generate("ears", in_parts, logprobs=0, **OPTIONS),
            "Python over HTTP": over_http.generate("ears", QUESTION, audio=[SOUND], logprobs=0, **OPTIONS),
            "another sound": hearing.client.generate("ears", QUESTION, audio=OTHER, logprobs=0, **OPTIONS),
        }
    bulk = CliRunner().invoke(app, ["bulk", "run", str(file), "-o", str(out), "--quiet"])
    asked = ["ears", QUESTION, "--audio", str(path), "--temperature", "0", "--max-tokens", "8", "--json"]
    typed = CliRunner().invoke(app, ["run", *asked])

    first = {door: result.logprobs[0].logprob for door, result in results.items()}
    first["chat completions"] = first_logprob(posted.json())
    assert bulk.exit_code == 0, bulk.output
    first["rows of bulk files"] = first_logprob(read_rows(out)[0]["response"]["body"])
    other = first.pop("another sound")
    assert first == dict.fromkeys(first, pytest.approx(first["Python"], abs=1e-6))
    assert abs(other - first["Python"]) > 1e-4
    assert typed.exit_code == 0, typed.output
    assert json.loads(typed.stdout)["usage"]["prompt_tokens"] == results["Python"].usage.prompt_tokens > 125


def test_a_model_with_both_takes_both_in_one_turn(hearing: Fleet) -> None:
    result = hearing.client.generate("both", QUESTION, images=png(64, 64), audio=[SOUND, OTHER], **OPTIONS)

    assert result.usage.prompt_tokens > 64 + 2 * 125
    assert result.usage.completion_tokens == 8


def test_lists_tell_who_hears_and_others_refuse_at_once(hearing: Fleet, http: httpx2.Client) -> None:
    listed = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
    answer = http.post("/v1/chat/completions", json={"model": "text", "messages": chat(SOUND)})

    assert {name: model["modalities"] for name, model in listed.items()} == {
        "ears": ["text", "audio"], "eyes": ["text", "vision"], "both": ["text", "vision", "audio"], "text": ["text"],
    }  # fmt: skip
    assert listed["ears"]["capabilities"] == ["completion", "audio"]
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "media_unsupported")
    with pytest.raises(MediaUnsupported, match=r"'eyes' takes text and vision alone.*ask one that hears: both, ears"):
        hearing.client.submit("eyes", QUESTION, audio=SOUND)
    with pytest.raises(MediaUnsupported, match=r"'ears' takes text and audio alone.*ask one that sees: both, eyes"):
        hearing.client.submit("ears", QUESTION, images=png(8, 8))


def test_a_deterministic_answer_about_a_sound_is_proven_by_its_receipt(hearing: Fleet) -> None:
    job = hearing.client.submit("ears", QUESTION, audio=OTHER, deterministic=True, **OPTIONS)
    result = job.result(WAIT_S)
    verified = hearing.client.verify(job.id)

    assert result.receipt is not None
    assert result.receipt.media == (hashlib.sha256(OTHER).hexdigest(),)
    assert result.receipt.projector_sha256
    assert verified.is_equal
    assert verified.is_same_class


@pytest.mark.parametrize(("what", "data"), list(hostile()), ids=lambda value: value if isinstance(value, str) else "")
def test_hostile_sounds_cost_their_own_job_alone(hearing: Fleet, what: str, data: bytes) -> None:
    pid = hearing.instance("ears").pid

    with pytest.raises((InvalidParameter, MediaUnreadable), match="sound"):
        hearing.client.generate("ears", QUESTION, audio=data, timeout=WAIT_S, **OPTIONS)
    assert hearing.instance("ears").pid == pid
