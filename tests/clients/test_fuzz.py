"""Our own OpenAPI page as schemathesis reads it: whatever it makes of that, no request is answered by a 5xx."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.environments import interpreter
from tests.support.fleets import scripted_fleet
from tests.support.gateways import Gateway, gateway

pytestmark = pytest.mark.clients

SCHEMATHESIS = ["schemathesis>=4.32,<5"]
MODEL = "echo"
BUDGET_S = 40


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("home")
    with scripted_fleet(home, {MODEL: {}}) as fleet, gateway(fleet.url, home) as running:
        fleet.client.generate(MODEL, "x", max_tokens=1)
        yield running


@pytest.mark.timeout(600)  # the first time it is installed
def test_nothing_that_our_page_allows_is_answered_by_a_server_error(door: Gateway, tmp_path: Path) -> None:
    page = door.http.get("/openapi.json").json()
    bodies = [schema for schema in page["components"]["schemas"].values() if "model" in schema.get("properties", {})]
    for body in bodies:
        body["properties"]["model"]["enum"] = [MODEL]  # or hardly a request would come beyond "unknown model"
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(page))
    command = [str(interpreter(SCHEMATHESIS).parent / "schemathesis"), "run", str(file), "--url", door.url]
    bounds = ["--seed", "1", "--max-examples", "5", "--max-time", str(BUDGET_S), "--request-timeout", "30"]
    what = ["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--suppress-health-check", "all"]
    done = subprocess.run(
        [*command, *bounds, *what, "--warnings", "off", "--no-color"], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout[-8000:]
    assert len(bodies) > 3
    assert "Traceback" not in door.log.read_text()
