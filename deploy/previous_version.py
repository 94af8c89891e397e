"""Builds the version before this one from the history of the checkout, for tests of upgrades; keeps it in the cache.

    python deploy/previous_version.py     build it if it is not there; the last line of stdout is its Python

`deploy/previous-version` names it and its commit. Its environment holds nothing but that Packtrain: all else comes from
the environment that runs this, so it needs no network but for pip's build backend, and it is there in seconds. Standard
library only.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMED = ROOT / "deploy" / "previous-version"


class Unbuildable(Exception):
    """It cannot be had here; the message ends with the remedy."""


def named() -> tuple[str, str]:
    """Its version and its commit."""
    version, commit = NAMED.read_text().split()
    return version, commit


def sources(commit: str) -> bytes:
    """The files of a commit, as a tar archive.

    Raises:
        Unbuildable: The history does not hold it.
    """
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise Unbuildable(
            f"commit {commit} is not in the history here ({said}); get all of it with `git fetch --unshallow`"
        )
    return done.stdout


def build(folder: Path, archive: bytes) -> None:
    """Make an environment with the Packtrain of an archive in `folder`, which appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(temporary, filter="data")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python_of(folder)), "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, temporary], check=True, stdout=sys.stderr)
        # As a path, not as a site: the editable Packtrain of the environment that lends the rest is none of it.
        packages = next(folder.glob("lib/python*/site-packages"))
        (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (folder / "complete").touch()


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def previous_python() -> Path:
    """The interpreter that has the version before; builds it the first time, in some ten seconds.

    Raises:
        Unbuildable
    """
    version, commit = named()
    cache = Path(os.environ.get("PACKTRAIN_CACHE") or "~/.cache/packtrain").expanduser()
    lender = hashlib.sha256(f"{sys.prefix} {sys.version}".encode()).hexdigest()[:8]
    folder = cache / "previous" / f"{version}-{commit}-{lender}"
    if not (folder / "complete").exists():
        try:
            build(folder, sources(commit))
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unbuildable(f"cannot build {version} of {commit} into {folder} ({error}); see above") from error
    return python_of(folder)


def main() -> int:
    """Entry point; the exit code."""
    try:
        print(previous_python())
    except Unbuildable as error:
        print(f"previous version: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
