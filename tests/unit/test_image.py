"""What the image is made of."""

from __future__ import annotations

import pytest
from deploy.requirements import pins, requirements

from tests.conftest import ROOT

pytestmark = pytest.mark.unit

PYPROJECT = """
[project]
dependencies = ["redis>=7"]
[project.optional-dependencies]
worker = ["llama-cpp-python==1.2", "numpy", "packtrain[join, gateway]"]
join = ["zeroconf"]
gateway = ["fastapi", "redis>=7"]
monitor = ["flower"]
"""


def test_requirements_are_those_of_the_extras_once_without_ourselves_and_llama_cpp() -> None:
    assert requirements(PYPROJECT, ["worker"]) == ["fastapi", "numpy", "redis>=7", "zeroconf"]
    assert requirements(PYPROJECT, []) == ["redis>=7"]
    with pytest.raises(SystemExit, match="'bulk' is no extra"):
        requirements(PYPROJECT, ["bulk"])


def test_pins_are_the_versions_of_the_lock_without_its_hashes() -> None:
    lock = """# made by
amqp==5.4.2 \\
    --hash=sha256:93 \\
    --hash=sha256:e6
win==1.0 ; sys_platform == 'win32' \\
    --hash=sha256:a
"""

    assert pins(lock) == ["amqp==5.4.2", "win==1.0 ; sys_platform == 'win32'"]


def test_the_extras_of_the_image_are_in_pyproject() -> None:
    image = (ROOT / "deploy/Dockerfile").read_text()
    extras = next(line for line in image.splitlines() if line.startswith("ARG EXTRAS=")).partition("=")[2]

    found = requirements((ROOT / "pyproject.toml").read_text(), extras.split(","))

    assert any(line.startswith("fastapi") for line in found)
    assert not any("packtrain" in line or "llama" in line for line in found)


def test_the_build_context_holds_what_the_dockerfile_copies_and_nothing_else() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        word.rstrip("/")
        for line in (ROOT / "deploy/Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }

    assert ignore[1] == "*"
    assert {f"!{word}" for word in copied} == {line for line in ignore if line.startswith("!")}
