"""A fleet that sees, through every door: SmolLM2 with the projector in tests/assets/vision, as well as its README says.

It can tell shapes, colours and numbers of what is in a picture, and a wrong or missing image shows in each answer.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.images import ImageRef
from packtrain.client import ImageGone, ImagesUnsupported, ImageUnreadable, InvalidParameter, Packtrain
from tests.support.bulk_runs import PROGRAM
from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.fleets import Fleet, eventually, fleet
from tests.support.pictures import EXPECTED, PROJECTOR, Sample, asked, hostile, png_bomb, samples

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

SEEING = "smollm2-shapes"
N_SLOTS = 16
#: No measure of speed: a busy machine is no defect.
WAIT_S = 200
#: Greedy, and no more than the longest answer.
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home, weights = tmp_path_factory.mktemp("home"), demo_model_folder() / f"{MODEL}.gguf"
    (home / "packtrain.toml").write_text(f"[defaults]\nslots = {N_SLOTS}\ncontext = 512\n")
    models = home / "models"
    models.mkdir()
    for name in (SEEING, MODEL):
        (models / f"{name}.gguf").symlink_to(weights)
    shutil.copy(PROJECTOR, models)
    with fleet(home, http_port=0) as running:
        running.client.generate(SEEING, "Hi", max_tokens=1)
        yield running


@pytest.fixture
def http(seeing: Fleet) -> Iterator[httpx2.Client]:
    assert seeing.running.gateway
    with httpx2.Client(base_url=seeing.running.gateway.url, timeout=WAIT_S) as client:
        yield client


def questions() -> list[tuple[Sample, str]]:
    return [(sample, kind) for sample in samples() for kind in sample.questions]


def number_right(answers: list[str]) -> dict[str, int]:
    pairs = zip(questions(), answers, strict=True)
    return dict(Counter(kind for (sample, kind), answer in pairs if answer == sample.answers[kind]))


def test_the_answers_about_the_samples_are_as_right_as_the_readme_says(seeing: Fleet) -> None:
    jobs = [
        seeing.client.submit(SEEING, sample.questions[kind], images=[sample.path], **GREEDY)
        for sample, kind in questions()
    ]

    assert number_right([job.result(WAIT_S).text for job in jobs]) == EXPECTED


def test_a_chat_over_http_sees_as_well(http: httpx2.Client) -> None:
    def ask(sample: Sample) -> bool:
        body = {"model": SEEING, "messages": asked(sample.data, sample.questions["describe"]), **GREEDY}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["choices"][0]["message"]["content"] == sample.answers["describe"])

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, samples())) == EXPECTED["describe"]


#: Samples of one shape each, of which the model gets everything right.
FEW = [sample for sample in samples() if sample.answers["count"] == "One."][:4]


@pytest.mark.parametrize("sample", FEW[:2], ids=lambda sample: sample.path.stem)
def test_every_other_door_sees_the_same(seeing: Fleet, http: httpx2.Client, tmp_path: Path, sample: Sample) -> None:
    question, right = "Which colour is the shape?", sample.answers["colour"]
    encoded = base64.b64encode(sample.data).decode()
    uri = f"data:image/png;base64,{encoded}"
    text = {"type": "text", "text": question}

    def said(path: str, body: dict[str, Any]) -> Any:
        answer = http.post(path, json={"model": SEEING, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    options = {"temperature": 0, "num_predict": 12}
    shown = {"type": "input_image", "image_url": uri}
    responded = said(
        "/v1/responses",
        {
            "input": [{"role": "user", "content": [shown, {"type": "input_text", "text": question}]}],
            "temperature": 0,
            "max_output_tokens": 12,
        },
    )
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded}}
    chat = [{"role": "user", "content": question, "images": [encoded]}]
    with Packtrain(str(http.base_url)) as over_http:
        answers = {
            "responses": responded["output"][0]["content"][0]["text"],
            "messages": said("/v1/messages", {"messages": [{"role": "user", "content": [block, text]}], **GREEDY})[
                "content"
            ][0]["text"],
            "ollama chat": said("/api/chat", {"messages": chat, "stream": False, "options": options})["message"][
                "content"
            ],
            "ollama generate": said(
                "/api/generate", {"prompt": question, "images": [encoded], "stream": False, "options": options}
            )["response"],
            "bytes": seeing.client.generate(SEEING, question, images=sample.data, **GREEDY).text,
            "Pillow": seeing.client.generate(
                SEEING, question, images=[Image.open(io.BytesIO(sample.data))], **GREEDY
            ).text,
            "messages in Python": seeing.client.generate(
                SEEING, [{"role": "user", "content": [{"type": "image_url", "image_url": sample.path}, text]}], **GREEDY
            ).text,
            "Python over HTTP": over_http.generate(SEEING, question, images=sample.path, **GREEDY).text,
        }

    assert answers == dict.fromkeys(answers, right)


def command(seeing: Fleet, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "PACKTRAIN_URL": seeing.url},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def test_the_command_line_and_bulk_rows_see(seeing: Fleet, tmp_path: Path) -> None:
    sample = FEW[0]
    run = command(
        seeing, "run", SEEING, "--image", str(sample.path), "Which shape is it?", "--temperature", "0",
        "--max-tokens", "12",
    )  # fmt: skip
    rows = [
        {
            "custom_id": each.path.stem,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": SEEING, "messages": asked(each.data, "Which shape is it?"), **GREEDY},
        }
        for each in FEW
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bulk = command(seeing, "bulk", "run", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))
    listed = command(seeing, "models")

    assert run.stdout.strip() == sample.answers["shape"], run.stderr
    assert bulk.returncode == 0, bulk.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert found == {each.path.stem: each.answers["shape"] for each in FEW}
    assert "chat, vision" in listed.stdout


def test_sixteen_questions_about_four_images_run_beside_sixteen_texts(seeing: Fleet) -> None:
    images = [sample.data + b"new" for sample in FEW]  # nobody has looked at these files
    colours = [sample.answers["colour"] for sample in FEW]
    before = seeing.instance(SEEING).images_seen
    words = ["lemon", "river", "garden", "winter"]

    seen = [seeing.client.submit(SEEING, "Which colour is the shape?", images=image, **GREEDY) for image in images * 4]
    texts = [
        seeing.client.submit(
            SEEING, f"The word is apple. Repeat the word: apple\nThe word is {word}. Repeat the word:", raw=True,
            temperature=0, max_tokens=4,
        )
        for word in words * 4
    ]  # fmt: skip
    answers = [job.result(WAIT_S) for job in seen]

    assert [answer.text for answer in answers] == colours * 4
    assert [job.result(WAIT_S).text.split()[0] for job in texts] == words * 4
    assert max(answer.batch_peak for answer in answers) > 4
    assert sum(answer.usage.reused_tokens >= 16 for answer in answers) >= 8  # the image was not computed again
    assert eventually(lambda: seeing.instance(SEEING).images_seen == before + 4, "four images looked at")


@pytest.mark.parametrize(("what", "data"), list(hostile()), ids=lambda value: value if isinstance(value, str) else "")
def test_hostile_images_cost_their_own_job_alone(seeing: Fleet, what: str, data: bytes) -> None:
    pid = seeing.instance(SEEING).pid

    with pytest.raises((InvalidParameter, ImageUnreadable), match="image"):
        seeing.client.generate(SEEING, "What is this?", images=data, timeout=WAIT_S, **GREEDY)
    assert seeing.instance(SEEING).pid == pid


def test_whoever_writes_past_the_door_meets_the_same_bounds_in_the_instance(seeing: Fleet) -> None:
    bomb = png_bomb(30_000, 30_000)
    sha256 = hashlib.sha256(bomb).hexdigest()
    Redis.from_url(seeing.url).set(keys.blob(sha256), bomb, px=60_000)
    turn = {"role": "user", "content": "?", "images": [ImageRef(sha256=sha256, at=0).model_dump()]}

    with pytest.raises(ImageUnreadable, match="30000 x 30000"):
        seeing.client.generate(SEEING, [turn], timeout=WAIT_S, **GREEDY)


def test_a_model_without_eyes_refuses_at_once_and_names_one_that_has_them(seeing: Fleet, http: httpx2.Client) -> None:
    with pytest.raises(ImagesUnsupported, match=SEEING):
        seeing.client.submit(MODEL, "What is this?", images=FEW[0].data)
    body = {"model": MODEL, "messages": asked(FEW[0].data, "What is this?")}
    answer = http.post("/v1/chat/completions", json=body)
    listed = {model["id"]: model for model in http.get("/v1/models").json()["data"]}

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "images_unsupported")
    assert listed[SEEING]["modalities"] == ["text", "vision"]
    assert listed[SEEING]["capabilities"] == ["completion", "vision"]
    assert listed[MODEL]["modalities"] == ["text"]


def test_a_receipt_names_the_images_and_the_job_can_be_verified(seeing: Fleet) -> None:
    sample = FEW[1]
    job = seeing.client.submit(SEEING, sample.questions["describe"], images=sample.data, deterministic=True, **GREEDY)
    result = job.result(WAIT_S)
    verified = seeing.client.verify(job.id)

    assert result.text == sample.answers["describe"]
    assert result.receipt is not None
    assert result.receipt.images == (hashlib.sha256(sample.data).hexdigest(),)
    assert result.receipt.projector_sha256 == hashlib.sha256(PROJECTOR.read_bytes()).hexdigest()
    assert verified.is_equal
    assert verified.is_same_class


def test_an_image_that_is_not_kept_any_more_is_told(seeing: Fleet) -> None:
    turn = {"role": "user", "content": "?", "images": [{"sha256": "0" * 64, "at": 0}]}

    with pytest.raises(ImageGone, match="not kept any more"):
        seeing.client.submit(SEEING, [turn])
