"""A fleet that sees, through every door: SmolLM2 with the projector in tests/assets/vision, as well as its README says.

It can tell shapes, colours and numbers of what is in a picture, and a wrong or missing image shows in each answer.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from operator import eq
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.media import MediaRef
from packtrain.client import InvalidParameter, MediaGone, MediaUnreadable, MediaUnsupported
from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.doors import GREEDY, WAIT_S, Asked, Doors, doors, through_every_door
from tests.support.fleets import Fleet, eventually, fleet, scripted_fleet
from tests.support.pictures import EXPECTED, PROJECTOR, Sample, asked, hostile, part, png_bomb, samples

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

SEEING = "smollm2-shapes"
N_SLOTS = 16


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


@pytest.fixture
def asking(seeing: Fleet) -> Iterator[Doors]:
    assert seeing.running.gateway
    with doors(seeing.client, seeing.url, seeing.running.gateway.url, SEEING) as found:
        yield found


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


def test_every_other_door_is_as_right_about_all_of_them(asking: Doors, tmp_path: Path) -> None:
    answers = through_every_door(asking, tmp_path, [Asked(each.path, each.questions["describe"]) for each in samples()])

    right = [sample.answers["describe"] for sample in samples()]
    number = {door: sum(map(eq, said, right)) for door, said in answers.items()}
    assert number == dict.fromkeys(answers, EXPECTED["describe"])
    assert len(answers) == 10


#: Samples of one shape each, of which the model gets everything right.
FEW = [sample for sample in samples() if sample.answers["count"] == "One."][:4]


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

    with pytest.raises((InvalidParameter, MediaUnreadable), match="image"):
        seeing.client.generate(SEEING, "What is this?", images=data, timeout=WAIT_S, **GREEDY)
    assert seeing.instance(SEEING).pid == pid


def test_whoever_writes_past_the_door_meets_the_same_bounds_in_the_instance(seeing: Fleet) -> None:
    bomb = png_bomb(30_000, 30_000)
    sha256 = hashlib.sha256(bomb).hexdigest()
    Redis.from_url(seeing.url).set(keys.blob(sha256), bomb, px=60_000)
    turn = {"role": "user", "content": "?", "media": [MediaRef(sha256=sha256, at=0).model_dump()]}

    with pytest.raises(MediaUnreadable, match="30000 x 30000"):
        seeing.client.generate(SEEING, [turn], timeout=WAIT_S, **GREEDY)


def test_a_model_without_eyes_refuses_at_once_and_names_one_that_has_them(seeing: Fleet, http: httpx2.Client) -> None:
    with pytest.raises(MediaUnsupported, match=SEEING):
        seeing.client.submit(MODEL, "What is this?", images=FEW[0].data)
    body = {"model": MODEL, "messages": asked(FEW[0].data, "What is this?")}
    answer = http.post("/v1/chat/completions", json=body)
    listed = {model["id"]: model for model in http.get("/v1/models").json()["data"]}

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "media_unsupported")
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
    assert result.receipt.media == (hashlib.sha256(sample.data).hexdigest(),)
    assert result.receipt.projector_sha256 == hashlib.sha256(PROJECTOR.read_bytes()).hexdigest()
    assert verified.is_equal
    assert verified.is_same_class


def test_an_image_that_is_not_kept_any_more_is_told(seeing: Fleet) -> None:
    turn = {"role": "user", "content": "?", "media": [{"sha256": "0" * 64, "at": 0}]}

    with pytest.raises(MediaGone, match="not kept any more"):
        seeing.client.submit(SEEING, [turn])


def test_a_fleet_whose_model_is_another_fleets_sees_by_it(seeing: Fleet, tmp_path: Path) -> None:
    assert seeing.running.gateway
    url = f'url = "{seeing.running.gateway.url}/v1"\nmodel = "{SEEING}"\n'
    (tmp_path / "packtrain.toml").write_text(
        f'[models.far.remote]\nmodalities = ["vision"]\n{url}[models.dim.remote]\n{url}'
    )
    with scripted_fleet(tmp_path, {}, http_port=0) as here:
        jobs = [here.client.submit("far", each.questions["describe"], images=each.path, **GREEDY) for each in samples()]
        turn = {"role": "user", "content": [{"type": "text", "text": "Look:"}, part(FEW[0].data), part(FEW[0].data)]}
        far, near = here.client.generate("far", [turn], **GREEDY), seeing.client.generate(SEEING, [turn], **GREEDY)
        known = {info.id: info.modalities for info in here.client.models()}
        with pytest.raises(MediaUnsupported, match=r"ask one that sees: far, or say so in `modalities`"):
            here.client.submit("dim", "What is this?", images=FEW[0].path)
        answers = [job.result(WAIT_S) for job in jobs]

    assert sum(a.text == each.answers["describe"] for a, each in zip(answers, samples(), strict=True)) == 23
    assert (far.text, far.usage.prompt_tokens) == (near.text, near.usage.prompt_tokens)
    assert known == {"far": ("text", "vision"), "dim": ("text",)}
    assert answers[0].receipt is not None
    assert answers[0].receipt.media == (hashlib.sha256(samples()[0].data).hexdigest(),)
