"""The lock files hold what pyproject.toml asks for, on every Python we support, and nothing without a hash."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

pytestmark = pytest.mark.unit

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
#: Built here with flags of ours, and pinned in pyproject.toml.
BUILT = "llama-cpp-python"
PLATFORMS = [("3.11", "linux"), ("3.12", "linux"), ("3.13", "darwin")]


def locked(name: str) -> list[tuple[Requirement, str]]:
    """Each requirement of a lock file, with its hashes."""
    blocks = re.split(r"\n(?=\S)", (ROOT / "deploy" / name).read_text())
    entries = [block for block in blocks if not block.startswith("#")]
    return [(Requirement(block.partition(" \\\n")[0]), block) for block in entries]


def asked(*, dev: bool) -> Iterator[Requirement]:
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for line in [*project["dependencies"], *extras, *(group("dev") if dev else ())]:
        if (requirement := Requirement(line)).name not in ("packtrain", BUILT):
            yield requirement


def group(name: str) -> Iterator[str]:
    for entry in PYPROJECT["dependency-groups"][name]:
        if isinstance(entry, str):
            yield entry
        else:
            yield from group(entry["include-group"])


def environment(python: str, platform: str) -> dict[str, str]:
    system = {"linux": "Linux", "darwin": "Darwin"}[platform]
    here = {name: str(value) for name, value in default_environment().items()}
    versions = {"python_version": python, "python_full_version": f"{python}.5"}
    return {**here, **versions, "sys_platform": platform, "platform_system": system}


@pytest.mark.parametrize(("name", "dev"), [("requirements.lock", False), ("requirements-dev.lock", True)])
@pytest.mark.parametrize(("python", "platform"), PLATFORMS)
def test_what_is_asked_for_is_locked(name: str, dev: bool, python: str, platform: str) -> None:
    here = environment(python, platform)
    pins = {canonicalize_name(pin.name): pin for pin, _ in locked(name) if not pin.marker or pin.marker.evaluate(here)}
    wanted = [each for each in asked(dev=dev) if not each.marker or each.marker.evaluate(here)]

    missing = [
        str(each) for each in wanted
        if (pin := pins.get(canonicalize_name(each.name))) is None
        or not each.specifier.contains(next(iter(pin.specifier)).version, prereleases=True)
    ]  # fmt: skip
    assert not missing, f"run `make lock`: {name} does not hold {missing}"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_each_entry_is_one_version_with_hashes(name: str) -> None:
    for pin, block in locked(name):
        assert [spec.operator for spec in pin.specifier] == ["=="], pin
        assert "--hash=sha256:" in block, pin
        assert pin.name != BUILT


def test_what_images_and_tests_run_is_the_same() -> None:
    images, tests = (
        {f"{pin.name}{pin.specifier}" for pin, _ in locked(name)}
        for name in ("requirements.lock", "requirements-dev.lock")
    )

    assert images <= tests


def test_no_index_but_pypi_is_named() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / "deploy" / name).read_text()
        assert "://" not in text
