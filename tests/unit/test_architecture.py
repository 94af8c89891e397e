"""Rules of the source tree that no other tool checks."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import packtrain.broker
from tests.conftest import ROOT, RUN_IN

pytestmark = pytest.mark.unit

LUA = sorted((ROOT / "broker/packtrain/broker/lua").glob("*.lua"))
HEAVY = ("llama_cpp", "llguidance", "psutil", "numpy")


def test_every_folder_of_tests_is_run_by_some_target() -> None:
    folders = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("test_*.py")}

    assert folders == RUN_IN.keys()
    makefile = (ROOT / "Makefile").read_text()
    assert [folder for folder in folders if f" tests/{folder}" not in makefile] == []


def test_the_namespace_package_has_no_init_file() -> None:
    assert list(ROOT.glob("*/packtrain/__init__.py")) == []


def test_the_three_source_roots_are_there() -> None:
    assert {path.parent.name for path in ROOT.glob("*/packtrain")} >= {"broker", "client", "workers"}


def test_the_thin_client_imports_nothing_heavy() -> None:
    broker = [f"packtrain.broker.{module.name}" for module in pkgutil.iter_modules(packtrain.broker.__path__)]
    light = ["packtrain.client", *(name for name in broker if not name.endswith("flower_app"))]
    program = (
        # redis-py loads OpenTelemetry's SDK, and that psutil, wherever it is installed: the thin client brings none.
        "import sys, importlib\nsys.modules['opentelemetry.sdk'] = None\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert done.stderr == ""
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", [p for p in LUA if p.stem != "prelude"], ids=lambda path: path.stem)
def test_a_script_opens_with_its_keys_and_arguments(path: Path) -> None:
    lines = path.read_text().splitlines()
    opening = lines[: next(number for number, line in enumerate(lines) if not line.startswith("--"))]
    head, body = "\n".join(opening), "\n".join(lines[len(opening) :])

    explained = set(re.findall(r"(?:KEYS|ARGV)\[\d+\]", head))
    used = set(re.findall(r"(?:KEYS|ARGV)\[\d+\]", body))
    assert any("KEYS[1]" in line for line in opening)
    assert any("ARGV[1]" in line for line in opening)
    assert used <= explained
    assert "Returns" in head


def test_there_are_scripts_to_look_at() -> None:
    assert {path.stem for path in LUA} >= {"claim", "emit", "finish", "submit"}
