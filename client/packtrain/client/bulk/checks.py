"""Whether the files of a run are what they should be: there, not each other, not another's, not changed."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packtrain.broker.errors import InvalidParameter, SetupError
from packtrain.client.bulk.options import BulkOptions
from packtrain.client.bulk.sources import STDIN, is_plain, open_lines

_HASH_BYTES = 1024 * 1024


def check_paths(source: str, out: Path, errors: Path) -> None:
    """Refuse a run whose files are missing or the same.

    Raises:
        InvalidParameter
    """
    if source != STDIN and not Path(source).exists():
        raise InvalidParameter(f"cannot read {source}: there is no such file; name a file, or - for stdin")
    if out.is_dir() or out == errors:
        raise InvalidParameter(f"{out} cannot take the answers; name a file of its own", field="out")
    for path in (out, errors):
        if source != STDIN and path.exists() and path.samefile(source):
            raise InvalidParameter(f"{path} is the input; name another file for the answers", field="out")


def check_free(*paths: Path) -> None:
    """Refuse to write over what is not ours.

    Raises:
        InvalidParameter
    """
    for path in paths:
        if path.exists() and path.stat().st_size:
            raise InvalidParameter(
                f"{path} exists and is of no run of ours; choose another output, or --restart to replace it",
                field="out",
            )


def stamp_of(source: str) -> list[int] | None:
    """What tells a file that nobody touched; None: there is no telling."""
    if source == STDIN:
        return None
    stat = os.stat(source)
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns]


def hash_of_lines(source: str, template: str | None) -> str:
    """sha256 of the lines of a source; empty: there are none, as of a stdin that nobody feeds."""
    digest, some = hashlib.sha256(), False
    with open_lines(source, template) as lines:
        for line in lines:
            digest.update(line)
            some = True
    return digest.hexdigest() if some else ""


def hash_of(path: str) -> str:
    """The same of a plain file, much faster."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_same(options: BulkOptions, meta: Mapping[str, Any]) -> None:
    """Refuse to go on with another run than was begun here.

    Args:
        meta: Of its ledger.

    Raises:
        InvalidParameter: It is another one; says in what.
    """
    out = options.out
    for name, now in options.fixed().items():
        if (then := meta["options"].get(name)) != now:
            raise InvalidParameter(
                f"{out} was begun with {name} = {then!r}, not {now!r}; give the same options to go on with it, "
                "--restart to begin anew, or another output",
                field=name,
            )
    source = options.source
    stamp = stamp_of(source)
    if stamp and stamp == meta["stamp"]:
        return
    found = hash_of(source) if is_plain(source) else hash_of_lines(source, options.template)
    if found and found != meta["sha256"]:
        raise InvalidParameter(
            f"{source} has other rows than when {out} was begun; choose another output, or --restart to begin anew",
            field="input",
        )


@contextmanager
def written(out: Path) -> Iterator[None]:
    """What goes wrong with files, as a sentence. Nothing is lost by it: see output.py."""
    try:
        yield
    except BrokenPipeError:  # of stdout, whose reader has seen enough
        raise
    except OSError as error:
        raise SetupError(
            f"cannot write {error.filename or out} ({error.strerror}); mend that, for a full disk by making "
            "room, and go on with the same command"
        ) from error
    except sqlite3.Error as error:
        raise SetupError(
            f"cannot write the ledger beside {out} ({error}); mend that, for a full disk by making room, and go "
            "on with the same command"
        ) from error
