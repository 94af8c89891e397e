"""The tensors that a shard keeps on disk, so that its next load need not send them.

llama.cpp writes each tensor of more than 10 MiB into a file named by a hash of 64 bits, and takes what it finds there
for the tensor, unread and whatever its length. So this side sees to two things: each model has a folder of its own,
named by the hash of its file, so that no model can slip another one false tensors; and a folder counts only once a load
came to its end, for a shard that is killed leaves half a file behind.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path

#: Models whose tensors a node keeps. They may be gigabytes each.
MAX_MODELS = 4
#: A shard keeps tensors only where so many times its memory is free on the disk.
SPARE = 2

#: There when all that is in the folder is whole. No tensor's name: those are hex digits.
_WHOLE = "whole"


def begin(folder: Path) -> None:
    """Before a shard that may write into it: keep what is known to be whole.

    Raises:
        OSError: It cannot be made.
    """
    if not (folder / _WHOLE).exists():
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _WHOLE).unlink(missing_ok=True)


def end(folder: Path) -> None:
    """After a head has loaded all it wanted: nothing is written any more."""
    (folder / _WHOLE).touch()


def size(folder: Path) -> int:
    """Bytes of its tensors."""
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())


def folder_of(parent: Path, key: str) -> Path:
    """Of a model.

    Args:
        key: Equal for equal files; anything.
    """
    return parent / hashlib.sha256(key.encode()).hexdigest()[:32]


def sweep(parent: Path, *, keep: Collection[Path]) -> None:
    """Remove the caches of all models but those used last, and those to keep."""
    others = [folder for folder in parent.glob("*") if folder.is_dir() and folder not in keep]
    others.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in others[max(0, MAX_MODELS - len(keep)) :]:
        shutil.rmtree(folder, ignore_errors=True)
