"""Prints what pyproject.toml asks for, one requirement a line, without packtrain itself and without llama.cpp.

    python deploy/requirements.py pyproject.toml worker,gateway
    python deploy/requirements.py --pins deploy/requirements.lock      versions alone, as constraints for pip

So an image gets its libraries in a layer that stays the same while only our code changes, in the versions of the lock
though it takes not all of them. Standard library only.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

#: Built apart, with flags of its own: `build_llama.py`.
APART = "llama-cpp-python"
_PIN = re.compile(r"^[A-Za-z0-9][\w.-]*==[^\s\\;]+(?: ?;[^\\]*)?", re.MULTILINE)
_OURS = re.compile(r"^packtrain\[([\w,\s-]+)\]$")


def requirements(pyproject: str, extras: Sequence[str]) -> list[str]:
    """All that the base and these extras ask for, sorted. Extras may name others: `packtrain[join]`.

    Raises:
        SystemExit: There is no such extra.
    """
    project = tomllib.loads(pyproject)["project"]
    found = {*project["dependencies"], *_of(project["optional-dependencies"], extras)}
    return sorted(line for line in found if not line.startswith(APART))


def pins(lock: str) -> list[str]:
    """Names with versions, and markers where there are some, without hashes."""
    return [pin.strip() for pin in _PIN.findall(lock)]


def _of(known: Mapping[str, Sequence[str]], extras: Sequence[str]) -> Iterator[str]:
    for extra in extras:
        if extra not in known:
            raise SystemExit(f"{extra!r} is no extra; there are {', '.join(known)}")
        for line in known[extra]:
            if ours := _OURS.match(line):
                yield from _of(known, [each.strip() for each in ours[1].split(",")])
            else:
                yield line


if __name__ == "__main__":
    if sys.argv[1] == "--pins":
        print("\n".join(pins(Path(sys.argv[2]).read_text())))
    else:
        print("\n".join(requirements(Path(sys.argv[1]).read_text(), [e for e in sys.argv[2].split(",") if e])))
