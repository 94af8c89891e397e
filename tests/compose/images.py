"""Images for a machine that reaches Debian and PyPI, but no registry of images: made from their packages.

    debootstrap ─► base ─► base + redis-server            both imported, kept as tar files in the cache
    pip download, build_llama.py ─► wheels                imported, too: the build takes nothing from a network
    deploy/Dockerfile (base, wheels) ─► our image         exactly as users build it, but for the arguments

All that needs a network is made before an engine of ours takes this process out of it: `prepare`, then `load`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from deploy.requirements import pins, requirements

from tests.compose.engine import Engine, NoEngine
from tests.conftest import ROOT

SUITE = "bookworm"
BASE = f"packtrain-test/base:{SUITE}"
BROKER = f"packtrain-test/broker:{SUITE}"
WHEELS = "packtrain-test/wheels"
IMAGE = "packtrain-test:now"
#: The same under another name and id: what an upgrade brings.
NEXT = "packtrain-test:next"
EXTRAS = ("worker", "gateway", "monitor", "hub")

_BASE_PACKAGES = "python3,python3-venv,tini,libgomp1,libstdc++6,ca-certificates"
#: The image's llama.cpp is for any CPU, as users get it.
_LLAMA = {"LLAMA_CMAKE_ARGS": "-DGGML_NATIVE=OFF"}
#: Markers are those of the Python that downloads; the base's is older and wants this, too.
_OLDER_PYTHON = ("async-timeout>=4.0.3",)


def cache() -> Path:
    """Where finished files are kept."""
    return Path(os.environ.get("PACKTRAIN_CACHE") or "~/.cache/packtrain").expanduser() / "compose"


def prepare(folder: Path) -> None:
    """Make what needs a network, if it is not there: two root file systems and the wheels.

    Raises:
        NoEngine: debootstrap is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "base.tar").exists() or not (folder / "broker.tar").exists():
        _root_file_systems(folder)
    if not (folder / "wheels" / f".{_wheels_key()}").exists():
        _wheels(folder / "wheels")


def load(engine: Engine, folder: Path) -> None:
    """Bring all into the engine, and build our image."""
    for name, image in (("base", BASE), ("broker", BROKER)):
        if engine.run("image", "inspect", image, check=False).returncode:
            engine.run("import", str(folder / f"{name}.tar"), image)
    if engine.run("image", "inspect", f"{WHEELS}:{_wheels_key()}", check=False).returncode:
        tar = subprocess.run(["tar", "-C", folder / "wheels", "-c", "."], check=True, capture_output=True).stdout
        engine.run("import", "-", f"{WHEELS}:{_wheels_key()}", stdin=tar)
    arguments = {"BASE": BASE, "WHEELS": f"{WHEELS}:{_wheels_key()}", "PIP_NO_INDEX": "1"}
    words = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    os.environ["DOCKER_BUILDKIT"] = "1"
    build = ("build", "--quiet", "--file", str(ROOT / "deploy/Dockerfile"), *words)
    engine.run(*build, "--tag", IMAGE, str(ROOT), timeout_s=900)
    engine.run(*build, "--tag", NEXT, "--label", "next=yes", str(ROOT), timeout_s=900)


def _root_file_systems(folder: Path) -> None:
    if shutil.which("debootstrap") is None:
        raise NoEngine("debootstrap is missing, of which the images are made: apt-get install debootstrap")
    root = folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    sites = _run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]).split()
    _run(["debootstrap", "--variant=minbase", f"--include={_BASE_PACKAGES}", SUITE, str(root), *sites[:1]])
    _pack(root, folder / "base.tar")
    inside = "export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && apt-get install -qq -y redis-server"
    # As in the official images: user 999, and /data is its.
    inside += " && usermod -u 999 redis && groupmod -g 999 redis && install -d -o redis -g redis /data"
    _run(["chroot", str(root), "sh", "-c", inside])
    _pack(root, folder / "broker.tar")
    shutil.rmtree(root)


def _pack(root: Path, tar: Path) -> None:
    for litter in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(root / litter, ignore_errors=True)
    draft = tar.with_suffix(".new")
    _run(["tar", "-C", str(root), "-cf", str(draft), "."])
    draft.rename(tar)


def _wheels(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text = (ROOT / "pyproject.toml").read_text()
    build = tomllib.loads(text)["build-system"]["requires"]
    llama = _run([sys.executable, "deploy/build_llama.py", "--python", sys.executable], **_LLAMA).split()[-1]
    shutil.copy(llama, folder)
    wanted = [*requirements(text, EXTRAS), *build, *_OLDER_PYTHON, f"{folder}/{Path(llama).name}"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(pins((ROOT / "deploy/requirements.lock").read_text())))
        constraints.flush()
        asked = ["--dest", str(folder), "--constraint", constraints.name, *wanted]
        _run([sys.executable, "-m", "pip", "download", "--quiet", *asked])
    (folder / f".{_wheels_key()}").touch()


def _wheels_key() -> str:
    key = _run([sys.executable, "deploy/build_llama.py", "--print-key"], **_LLAMA)
    made_of = (ROOT / "pyproject.toml").read_text() + (ROOT / "deploy/requirements.lock").read_text() + key
    return hashlib.sha256(made_of.encode()).hexdigest()[:12]


def _run(command: Sequence[str], **env: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}{done.stdout[-1000:]}"
    return done.stdout
