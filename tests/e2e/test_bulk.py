"""Bulk files on a real model: deterministic rows give the same bytes, whatever company they have and whoever dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.bulk_runs import BulkCommand, read_rows, write_rows
from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.fleets import fleet

pytestmark = pytest.mark.e2e

BEGIN = "A pack train carries loads over mountains where no road leads. " * 4


@pytest.mark.timeout(900)  # some 20 s, but for busy machines
def test_an_ordered_file_is_the_same_when_its_rows_have_other_company_and_their_instance_dies(tmp_path: Path) -> None:
    chats = [
        {"custom_id": f"chat-{n}", "prompt": f"{BEGIN if n % 2 else ''}Why {n} animals?", "logprobs": True}
        for n in range(6)
    ]
    texts = [{"custom_id": f"text-{n}", "prompt": f"{n} lamas and", "url": "/v1/completions"} for n in range(4)]
    options = ("--ordered", "--deterministic", "-m", MODEL, "-n", "12", "-t", "0.8")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "packtrain.toml").write_text("[defaults]\nslots = 4\ncontext = 1024\n")
    # The same rows in another order, beside others: each has other neighbours in its batches.
    orders: dict[str, list[dict[str, Any]]] = {
        "one": [*chats, *texts],
        "two": [*texts, *chats[::-1], {"custom_id": "more", "prompt": "More?"}],
    }
    with fleet(tmp_path / "home", demo_model_folder()) as running:
        commands = {}
        for name, rows in orders.items():
            source = write_rows(tmp_path / f"{name}.jsonl", rows)
            commands[name] = BulkCommand(running.url, source, tmp_path / f"{name}.out.jsonl", options)
        commands["one"].start()
        assert commands["one"].wait(300) == 0, commands["one"].log
        commands["two"].start()
        commands["two"].until_ended(3, 300)
        running.kill(running.instance(MODEL).pid)
        assert commands["two"].wait(300) == 0, commands["two"].log

    first, second = ({line["custom_id"]: line for line in read_rows(commands[name].out)} for name in ("one", "two"))
    assert list(first) == [row["custom_id"] for row in orders["one"]]
    assert {name: second[name] for name in first} == first
    chat = first["chat-0"]["response"]["body"]
    assert chat["usage"]["completion_tokens"] > 0
    assert chat["choices"][0]["logprobs"]["content"]
