"""Programs that people use, each in an environment of its own, against a real gateway with the real model.

Each script says in its head what it needs, and asserts what is true of what it gets. The scripts hold the address that
docs/clients.md shows; it is replaced here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from packtrain.broker.states import JobState
from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.doc_blocks import CLIENTS, Block, Reason, blocks, excuse_of
from tests.support.environments import interpreter, needs
from tests.support.fleets import eventually, fleet, scripted_fleet
from tests.support.gateways import gateway

pytestmark = pytest.mark.clients

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "clients.md"
ADDRESS = "http://127.0.0.1:8080"
_BLOCK = re.compile(r"^```(?:python|sh|yaml)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_END_OF_SHOWN = "# --- end of what docs/clients.md shows"
SCRIPTS = sorted(HERE.glob("with_*"))
#: Programs with packages of others on further pages, which tests/e2e/test_docs.py leaves to us.
ELSEWHERE = [b for b in blocks("python") if b.page != "docs/clients.md" and excuse_of(b.code) is Reason.PACKAGES]


@dataclass(frozen=True, slots=True)
class Doors:
    url: str
    full: str  # of another fleet, which takes no more jobs for the model `busy`


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    home = tmp_path_factory.mktemp("home")
    (home / "packtrain.toml").write_text("[defaults]\nslots = 4\ncontext = 2048\n")
    busy = {"busy": {"n_slots": 1, "n_ctx": 2048, "step_ms": 1000}}
    with (
        fleet(home, demo_model_folder()) as running,
        gateway(running.url, home) as door,
        scripted_fleet(home / "full", busy) as full_fleet,
        gateway(full_fleet.url, home / "full", PACKTRAIN_MAX_WAITING="1") as full,
    ):
        # A deterministic instance: whatever company a request has, its text is the same.
        running.client.generate(MODEL, "Hi", max_tokens=1, deterministic=True)
        runs = full_fleet.client.submit("busy", "!long x", raw=True)
        eventually(lambda: runs.status().state is JobState.RUNNING, "a job that runs", 60)
        waits = full_fleet.client.submit("busy", "x", raw=True)
        yield Doors(door.url, full.url)
        waits.cancel()
        runs.cancel()


@pytest.mark.timeout(900)  # the first time its packages are installed
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem.removeprefix("with_"))
def test_it_works(script: Path, doors: Doors, tmp_path: Path) -> None:
    program = tmp_path / script.name
    program.write_text(script.read_text().replace(ADDRESS, doors.url))
    command = ["bash"] if script.suffix == ".sh" else [str(interpreter(needs(script)))]
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        [*command, str(program)],
        env={**env, "FULL_GATEWAY": doors.full},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", ELSEWHERE, ids=str)
def test_what_other_pages_show_of_them_works(block: Block, doors: Doors, tmp_path: Path) -> None:
    package = str(CLIENTS.findall(block.code)[0])
    request = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": request}
    (tmp_path / "requests.jsonl").write_text(json.dumps(row) + "\n")
    program = tmp_path / "shown.py"
    program.write_text(block.code.replace(ADDRESS, doors.url))
    command = [str(interpreter(needs(HERE / f"with_{package}.py"))), str(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"


def test_the_page_shows_what_is_tested() -> None:
    """Each script's beginning stands in docs/clients.md, and each code block there is the beginning of a script."""
    shown = [script.read_text().split(_END_OF_SHOWN)[0] for script in SCRIPTS]
    blocks = [found["code"].strip() for found in _BLOCK.finditer(DOCS.read_text())]

    assert all(any(block in text for text in shown) for block in blocks if "untested" not in block)
    assert all(any(block in text for block in blocks) for text in shown)
