"""What the files that deploy us say of each other; `make test-compose` runs them."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

from packtrain.broker.access import RIGHTS
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

COMPOSE = (ROOT / "docker-compose.yml").read_text()


def made(folder: Path) -> dict[str, str]:
    subprocess.run(["sh", "deploy/init-secrets.sh", str(folder)], cwd=ROOT, check=True, capture_output=True)
    return {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_every_secret_that_compose_reads_is_made_once_and_differs(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    wanted = set(re.findall(r"\$\{SECRETS:-[^}]*\}/([\w/]+)", COMPOSE))

    secrets = made(folder)

    assert wanted <= secrets.keys()
    assert len({secrets[name] for name in wanted}) == len(wanted)
    assert all(re.fullmatch(r"[0-9a-f]{48}", secrets[name]) for name in wanted)
    assert made(folder) == secrets


def test_secrets_are_closed_to_other_users_and_open_to_those_in_containers(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made(folder)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in ("password", "users/node", "api_key")} == {0o444}


@pytest.mark.parametrize("file", ["deploy/broker/users.sh", "deploy/init-secrets.sh", "docker-compose.yml"])
def test_every_user_of_the_broker_is_known(file: str) -> None:
    text = (ROOT / file).read_text()

    assert [role.value for role in RIGHTS if not re.search(rf"\b(users/|user_)?{role.value}\b", text)] == []


def test_kubernetes_scales_on_a_metric_that_there_is() -> None:
    scaling = (ROOT / "deploy/kubernetes/scaling.yaml").read_text()
    metrics = set(re.findall(r"packtrain_\w+", scaling))

    assert metrics
    assert metrics <= set(re.findall(r"`(packtrain_\w+)`", (ROOT / "docs/metrics.md").read_text()))


def test_kustomize_finds_its_files() -> None:
    text = (ROOT / "deploy/kustomization.yaml").read_text()
    named = re.findall(r"^ +- (?:[\w.]+=)?([\w/.-]+\.(?:yaml|sh|conf))$", text, re.MULTILINE)

    assert len(named) > 8
    assert [name for name in named if not (ROOT / "deploy" / name).is_file()] == []
