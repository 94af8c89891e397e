"""The whole fleet with a real model: SmolLM2-135M-Instruct, Q8_0."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from packtrain.client import (
    InvalidParameter,
    JobCancelled,
    JobFailed,
    JobState,
    PromptEmpty,
    PromptTooLong,
    UnknownModel,
    text_of,
)
from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.fleets import Fleet, eventually, fleet, until_first_text

pytestmark = pytest.mark.e2e

NUM_PROMPTS = 24


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("home")
    (home / "packtrain.toml").write_text(
        f"[models.{MODEL}]\nslots = {NUM_PROMPTS}\ncontext = 1024\naliases = ['smol']\n"
    )
    with fleet(home, demo_model_folder()) as running:
        running.client.generate(MODEL, "Hi", max_tokens=1)
        yield running


WORDS = (
    "river", "window", "garden", "purple", "market", "doctor", "silver", "yellow", "monkey", "castle", "winter",
    "summer", "pencil", "dragon", "bridge", "cheese", "forest", "guitar", "hammer", "island", "jungle", "kitten",
    "lemon", "mountain",
)  # fmt: skip


def copying_prompts() -> list[str]:
    """Prompts that a small model answers by copying the word that only this prompt asks for."""
    shots = "".join(f"The word is {w}. Repeat the word: {w}\n" for w in ("apple", "train", "butter", "ocean"))
    return [f"{shots}The word is {word}. Repeat the word:" for word in WORDS]


def test_twenty_four_prompts_share_a_batch_and_each_answer_belongs_to_its_own_prompt(real: Fleet) -> None:
    options: dict[str, Any] = {"raw": True, "temperature": 0, "max_tokens": 16, "ignore_eos": True}

    results = list(real.client.map(MODEL, copying_prompts(), in_flight=NUM_PROMPTS, **options))

    assert tuple(r.text.split()[0] for r in results) == WORDS
    assert len(set(WORDS)) == NUM_PROMPTS  # so an answer given to another prompt would be wrong
    assert max(r.batch_peak for r in results) == NUM_PROMPTS


def test_a_chat_answer_streams_in_readable_pieces(real: Fleet) -> None:
    job = real.client.submit(MODEL, "Describe the sea in French, with accents.", max_tokens=24, temperature=0)
    pieces = list(job.stream())

    assert len(pieces) > 3
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert "".join(pieces) == job.result().text


def test_the_same_seed_draws_the_same_answer_alone(real: Fleet) -> None:
    answers = {real.client.generate(MODEL, "Invent a name.", seed=11, max_tokens=16).text for _ in range(3)}
    others = {real.client.generate(MODEL, "Invent a name.", seed=s, max_tokens=16).text for s in range(5)}

    assert len(answers) == 1
    assert len(others) > 1


def test_sampling_parameters_take_effect(real: Fleet) -> None:
    def text(**options: object) -> str:
        return real.client.generate(MODEL, "Write one word.", max_tokens=8, **options).text  # type: ignore[arg-type]

    plain = text(temperature=0)

    assert text(temperature=1.5, top_k=1, seed=1) == plain
    assert text(temperature=0, stop=(plain[1:3],)) == plain[:1]
    assert text(temperature=0, logit_bias={1234: 100.0}) != plain
    assert real.client.generate(MODEL, "Hi", max_tokens=5, temperature=0).usage.completion_tokens == 5
    ignoring = real.client.generate(MODEL, "Say OK.", max_tokens=60, temperature=0, ignore_eos=True)
    assert ignoring.usage.completion_tokens == 60
    assert ignoring.finish_reason == "length"


#: 30 + 2 x 20 letters, four names and the longest blanks between them are some 350 tokens.
TOWN_TOKENS = 500


class Town(BaseModel):
    """What the model is asked for, in JSON. Bounded all over: it ends within `TOWN_TOKENS`, whatever is drawn."""

    model_config = ConfigDict(extra="forbid")  # pydantic's default lets the answer add names for ever

    name: str = Field(max_length=30)
    country: Literal["France", "Italy", "Spain"]
    inhabitants: int = Field(ge=0, le=20_000_000)
    sights: list[Annotated[str, Field(max_length=20)]] = Field(max_length=2)


def test_answers_have_the_form_that_was_asked_for(real: Fleet) -> None:
    prompts = [f"Name a town and describe it in JSON, number {number}." for number in range(4)]

    for temperature in (0, 1.5):
        for result in real.client.map(MODEL, prompts, schema=Town, temperature=temperature, max_tokens=TOWN_TOKENS):
            assert result.finish_reason == "stop"
            Town.model_validate_json(result.text)
    choice = real.client.generate(MODEL, "Is the sky blue?", grammar='root ::= "yes" | "no"', max_tokens=10)
    assert choice.text in ("yes", "no")
    cut = real.client.generate(MODEL, "A town in JSON.", schema=Town, max_tokens=3)
    assert cut.finish_reason == "length"


def test_a_form_that_cannot_be_kept_is_an_error_and_the_fleet_lives(real: Fleet) -> None:
    with pytest.raises(InvalidParameter, match="uniqueItems"):
        real.client.submit(MODEL, "x", schema={"type": "array", "uniqueItems": True})
    with pytest.raises(InvalidParameter, match="look-around"):
        real.client.generate(MODEL, "x", schema={"type": "string", "pattern": "(?=a)b"})
    with pytest.raises(InvalidParameter, match="line 1"):
        real.client.generate(MODEL, "x", grammar="root ::= (((")
    with pytest.raises(JobFailed, match="response_format"):
        real.client.generate(MODEL, "x", grammar='root ::= "x" ' + '"x"? ' * 2000)
    assert real.client.generate(MODEL, "Hi", json=True, max_tokens=40).text.startswith("{")


def test_the_command_line_takes_a_schema(real: Fleet, tmp_path: Path) -> None:
    (tmp_path / "town.json").write_text(json.dumps(Town.model_json_schema()))
    (tmp_path / "broken.json").write_text("{")

    asked = ("run", MODEL, "A town in JSON.", "-n", str(TOWN_TOKENS))
    done = packtrain(real, *asked, "--schema", str(tmp_path / "town.json"))
    broken = packtrain(real, "run", MODEL, "A town in JSON.", "--schema", str(tmp_path / "broken.json"))

    assert done.returncode == 0, done.stderr
    Town.model_validate_json(done.stdout)
    assert (broken.returncode, b"no JSON" in broken.stderr) == (2, True)


def test_an_alias_reaches_the_model(real: Fleet) -> None:
    assert real.client.generate("smol", "Hi", max_tokens=4).text


def test_wrong_requests_are_clear_errors_and_the_fleet_lives(real: Fleet) -> None:
    client = real.client

    with pytest.raises(PromptTooLong) as caught:
        client.generate(MODEL, "word " * 100_000, timeout=60)
    assert caught.value.data["num_tokens"] > 100_000
    assert caught.value.data["limit"] == 1023
    with pytest.raises(PromptEmpty):
        client.generate(MODEL, "")
    with pytest.raises(UnknownModel, match="smollm2"):
        client.generate("nosuch", "x")
    with pytest.raises(InvalidParameter, match="max_tokens"):
        client.generate(MODEL, "x", max_tokens=-5)
    with pytest.raises(InvalidParameter, match="Unicode"):
        client.generate(MODEL, b"\xff\xfe".decode("utf-8", "surrogateescape"))
    assert client.generate(MODEL, "Hi", max_tokens=3).usage.completion_tokens == 3


def test_a_running_and_a_prefilling_job_are_cancelled(real: Fleet) -> None:
    running = real.client.submit(MODEL, "Tell a long story.", ignore_eos=True)
    until_first_text(running)
    prefilling = [real.client.submit(MODEL, f"{i} " + "a b c d " * 220, max_tokens=1) for i in range(12)]
    for job in (running, *prefilling):
        job.cancel()

    with pytest.raises(JobCancelled):
        running.result(timeout=20)
    ended = [eventually(lambda j=j: (s := j.status()).state.is_terminal and s, "the end") for j in prefilling]  # type: ignore[misc]
    assert JobState.CANCELLED in {status.state for status in ended if status}
    assert real.client.generate(MODEL, "Hi", max_tokens=3).text


def test_killing_the_instance_in_mid_generation_keeps_every_token(real: Fleet) -> None:
    job = real.client.submit(MODEL, "Tell me about the sea.", max_tokens=150, temperature=0, ignore_eos=True)
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.extend(job.stream()))
    reader.start()
    eventually(lambda: len(seen) >= 3, "some of the text")

    real.kill(real.instance(MODEL).pid)

    result = job.result(timeout=90)
    reader.join(timeout=20)
    assert result.usage.completion_tokens == 150
    assert "".join(seen) == result.text
    assert job.status().attempts == 1


def packtrain(real: Fleet, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = "from packtrain.client.cli.main import main; main()"
    environment = {**os.environ, "PACKTRAIN_URL": real.url, "PACKTRAIN_HOME": str(real.running.home)}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], input=stdin, capture_output=True, env=environment, timeout=60
    )


def test_the_command_line_runs_a_prompt(real: Fleet) -> None:
    streamed = packtrain(real, "run", MODEL, "Say hello.", "-n", "8", "-t", "0")
    piped = packtrain(real, "run", MODEL, "-n", "8", "-t", "0", "--json", stdin=b"Say hello.")

    assert streamed.returncode == 0, streamed.stderr
    fields = json.loads(piped.stdout)
    assert fields["text"] == streamed.stdout.decode().rstrip("\n")
    assert fields["usage"]["completion_tokens"] == 8


def test_the_command_line_shows_the_fleet(real: Fleet) -> None:
    for command in ("ps", "nodes", "models", "jobs"):
        rows = json.loads(packtrain(real, command, "--json").stdout)
        assert rows, command
        assert packtrain(real, command).returncode == 0
    assert MODEL in packtrain(real, "ps").stdout.decode()
    assert packtrain(real, "doctor").returncode == 0, packtrain(real, "doctor").stdout


def test_a_stream_has_the_logprobs_of_its_tokens_bit_by_bit(real: Fleet) -> None:
    job = real.client.submit(MODEL, "Name a fruit.", max_tokens=12, temperature=0, logprobs=3)
    told = [entry for delta in job.deltas() for entry in delta.logprobs]
    result = job.result()

    assert tuple(told) == result.logprobs
    assert len(told) == result.usage.completion_tokens
    assert all([entry.token, entry.logprob] == [entry.top[0].token, entry.top[0].logprob] for entry in told)
    assert all(len(entry.top) == 3 for entry in told)


def test_a_text_survives_its_tokens_and_special_ones_are_as_they_are_written(real: Fleet) -> None:
    text = "  Ein Ma\u00df, \u4e24 \U0001f999s<|im_end|>\n"
    plain, parsed = (real.client.tokenize(MODEL, text, parse_special=parse) for parse in (False, True))
    chat = real.client.tokenize(MODEL, [{"role": "user", "content": "Hi"}])

    assert text_of(plain) == text_of(parsed) == text
    assert len(parsed) < len(plain)
    assert real.client.detokenize(MODEL, [piece.token for piece in parsed]) == text
    assert "<|im_start|>user\nHi<|im_end|>" in text_of(chat)
    assert len(chat) == real.client.count_tokens(MODEL, "Hi")


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        (["run", "nosuch", "x"], b"", 2, b"nosuch"),
        (["run", MODEL, ""], b"", 2, b"empty"),
        (["run", MODEL], b"\xff\xfe", 2, b"UTF-8"),
        (["run", MODEL, "x", "-n", "-3"], b"", 2, b"max_tokens"),
        (["jobs", "show", "nosuch"], b"", 2, b"nosuch"),
        (["load", "nosuch"], b"", 2, b"nosuch"),
    ],
)
def test_a_users_mistake_is_one_line_and_an_exit_code(
    real: Fleet, arguments: list[str], stdin: bytes, code: int, says: bytes
) -> None:
    done = packtrain(real, *arguments, stdin=stdin)

    assert done.returncode == code
    assert says in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") <= 2


def test_interrupting_run_cancels_its_job(real: Fleet) -> None:
    program = "from packtrain.client.cli.main import main; main()"
    environment = {**os.environ, "PACKTRAIN_URL": real.url}
    arguments = [sys.executable, "-c", program, "run", MODEL, "Tell a very long story."]
    before = {status.id for status in real.client.jobs(5)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.wait(20)

    assert process.returncode == 130
    (job_id,) = {status.id for status in real.client.jobs(5)} - before
    with pytest.raises(JobCancelled):
        real.client.job(job_id).result(timeout=20)


def test_a_broken_model_file_is_reported_by_name_and_the_agent_lives(real: Fleet) -> None:
    folder: Path = real.running.home / "models"
    (folder / "hostile.gguf").write_bytes(b"GGUF" + b"\xff" * 60)

    fault = eventually(
        lambda: [f for n in real.client.nodes() for f in n.faults if "hostile" in f.file], "the fault", 20
    )

    assert fault
    assert "hostile.gguf" in packtrain(real, "models").stdout.decode()
    (folder / "hostile.gguf").unlink()
    assert real.client.generate(MODEL, "Hi", max_tokens=2).text


def test_a_tool_that_must_be_called_is_called_with_arguments_of_its_schema(real: Fleet) -> None:
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
        },
        "required": ["city", "days"],
    }
    tool = {"type": "function", "function": {"name": "forecast", "parameters": parameters}}

    result = real.client.generate(
        MODEL, "How will the weather be in Oslo?", tools=[tool], tool_choice="required", max_tokens=100, temperature=0,
        parallel_tool_calls=False,
    )  # fmt: skip

    assert result.finish_reason == "tool_calls"
    (call,) = result.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "forecast"
    assert set(arguments) >= {"city", "days"}
    assert isinstance(arguments["days"], int)
