"""Environments for programs that need other packages than ours: made once, and kept in the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

_METADATA = re.compile(r"^# /// script\n(?P<toml>(?:# .*\n)+)# ///$", re.MULTILINE)


def needs(script: Path) -> list[str]:
    """What the head of a script says that it needs, as PEP 723 has it."""
    found = _METADATA.search(script.read_text())
    lines = found["toml"].splitlines() if found else []
    return list(tomllib.loads("\n".join(line[2:] for line in lines)).get("dependencies", []))


def interpreter(requirements: list[str]) -> Path:
    """The Python of an environment that has these packages; made when it is not in the cache."""
    cache = Path(os.environ.get("PACKTRAIN_CACHE") or "~/.cache/packtrain").expanduser()
    key = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:16]
    folder = cache / "clients" / key
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        (folder / "complete").touch()
    return python
