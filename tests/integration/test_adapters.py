"""LoRA adapters in a whole fleet, on llama.cpp with a tiny model: from packtrain.toml to receipt and verify."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gguf
import pytest

from packtrain.client import AdapterUnavailable, AsyncPacktrain, InvalidParameter, UnknownModel
from tests.support.fleets import Fleet, fleet
from tests.support.tiny_lora import write_tiny_lora
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.integration

CONFIG = """
[models.tiny]
context = 256
slots = 4
aliases = ["little"]

[models.tiny.adapters]
pirate = {path = "lora/pirate.gguf", scale = 0.5}
polite = "lora/polite.gguf"
wide = "lora/wide.gguf"
gone = "lora/gone.gguf"
"""
PROMPT = "the quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("home")
    (home / "packtrain.toml").write_text(CONFIG)
    write_tiny_lora(home / "models" / "lora" / "pirate.gguf", seed=1)
    write_tiny_lora(home / "models" / "lora" / "polite.gguf", seed=2)
    write_tiny_lora(home / "models" / "lora" / "wide.gguf", n_embd=128)
    write_tiny_model(home / "models" / "tiny.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    with fleet(home) as running:
        yield running


#: No end tokens, so that every answer has its 24.
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "logit_bias": {2: -100, 260: -100}, "raw": True}


def text(fleet: Fleet, *, model: str = "tiny", **options: Any) -> str:
    return fleet.client.generate(model, PROMPT, timeout=60, **OPTIONS, **options).text


def test_adapters_change_answers_by_name_and_scale(tiny: Fleet) -> None:
    base = text(tiny)
    found = {scale: text(tiny, adapters={"pirate": scale}) for scale in (0.0, 0.5, 1.0)}

    assert found[0.0] == base
    assert len({*found.values(), text(tiny, adapters=["polite"]), text(tiny, adapters=["polite", "pirate"])}) == 5
    assert text(tiny, adapters="pirate") == found[0.5]
    assert text(tiny, adapters=["pirate"], model="little") == found[0.5]
    assert text(tiny) == base


def test_jobs_with_other_adapters_at_once_get_what_each_gets_alone(tiny: Fleet) -> None:
    wanted = [None, ["pirate"], {"pirate": 1.0}, ["polite"]] * 3
    alone = [text(tiny, adapters=adapters, deterministic=True) for adapters in wanted[:4]]
    jobs = [tiny.client.submit("tiny", PROMPT, adapters=a, deterministic=True, **OPTIONS) for a in wanted]

    assert [job.result(60).text for job in jobs] == alone * 3
    assert len(set(alone)) == 4


def test_a_receipt_names_adapters_and_verify_runs_the_job_with_them_again(tiny: Fleet) -> None:
    plain, result = (
        tiny.client.generate("tiny", PROMPT, raw=True, deterministic=True, adapters=a, max_tokens=16, timeout=60)
        for a in (None, ["pirate"])
    )
    found = tiny.client.verify(result.job_id, timeout=60)

    assert plain.receipt is not None
    assert result.receipt is not None
    assert [(a.name, a.scale, len(a.sha256)) for a in result.receipt.adapters] == [("pirate", 0.5, 64)]
    assert plain.receipt.adapters == ()
    assert result.receipt.numerics_class != plain.receipt.numerics_class
    assert found.is_equal
    assert found.is_same_class
    assert found.new is not None
    assert found.new.adapters == result.receipt.adapters


def test_an_unknown_adapter_is_refused_when_the_job_is_submitted(tiny: Fleet) -> None:
    async def submit() -> None:
        async with AsyncPacktrain(tiny.url) as client:
            await client.submit("tiny", "x", adapters=["unheard"])

    num_jobs = len(tiny.client.jobs(1000))
    with pytest.raises(AdapterUnavailable, match=r"has no adapter 'unheard'; it can use: .*pirate, polite"):
        tiny.client.submit("little", "x", adapters=["unheard"])
    with pytest.raises(AdapterUnavailable, match=r"cannot use its adapter 'gone': no file 'lora/gone.gguf'"):
        tiny.client.submit("tiny", "x", adapters=["gone"])
    with pytest.raises(AdapterUnavailable, match="unheard"):
        asyncio.run(submit())
    with pytest.raises(UnknownModel):
        tiny.client.submit("other", "x", adapters=["pirate"])
    with pytest.raises(InvalidParameter, match="one of `adapters` at most"):
        tiny.client.submit("tiny", "x", adapters=["pirate", "polite"], deterministic=True)
    assert len(tiny.client.jobs(1000)) == num_jobs


def test_a_deterministic_instance_serves_other_jobs_with_several_adapters(tiny: Fleet) -> None:
    first = tiny.client.generate("tiny", PROMPT, deterministic=True, max_tokens=1, timeout=60)
    both = tiny.client.generate("tiny", PROMPT, adapters=["pirate", "polite"], meant_for=first.instance, timeout=60)

    assert both.instance == first.instance


def test_what_only_llama_cpp_can_tell_is_said_by_the_instance_and_harms_no_other(tiny: Fleet) -> None:
    with pytest.raises(AdapterUnavailable, match=r"'wide': llama.cpp refuses it: .*incorrect shape"):
        tiny.client.generate("tiny", "x", adapters=["wide"], timeout=60)

    assert text(tiny, adapters=["pirate"]) != text(tiny)


def test_the_command_line_names_adapters_and_shows_those_of_a_model(tiny: Fleet) -> None:
    def packtrain(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = "from packtrain.client.cli.main import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60,
            env={**os.environ, "PACKTRAIN_URL": tiny.url}, check=False,
        )  # fmt: skip

    run = ("run", "tiny", PROMPT, "--raw", "-t", "0", "-n", "16", "--json")
    done = packtrain(*run, "--adapter", "polite", "--adapter", "pirate=0.25")
    shown = packtrain("models", "show", "tiny")

    assert done.returncode == 0, done.stderr
    used = [(a["name"], a["scale"]) for a in json.loads(done.stdout)["receipt"]["adapters"]]
    assert used == [("pirate", 0.25), ("polite", 1.0)]
    assert packtrain(*run, "--adapter", "pirate=loud").returncode == 2
    assert packtrain(*run, "--adapter", "unheard").returncode == 2
    assert "pirate" in shown.stdout
    assert "cannot be used: no file 'lora/gone.gguf' is in the model folders" in shown.stdout
    assert "adapters" in shown.stdout
