"""Model files: which GGUF files lie in the model folders, and which of them are parts of one model.

The search cannot run away: folders are entered to a fixed depth and to a fixed number of entries, links to files are
followed (the Hugging Face cache is made of them) and links to folders are not. Nothing is opened here, so looking
again every few seconds costs one `stat` per file.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from packtrain.broker.model_info import ModelFault

MAX_DEPTH = 8  # folders below a model folder
MAX_ENTRIES = 50_000  # files and folders in one model folder, all depths together
MAX_FILES = 2_000  # GGUF files in one model folder
SUFFIX = ".gguf"

#: The name that llama.cpp gives to, and demands of, the parts of a split model.
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One GGUF file. Equal to itself of a moment ago exactly when nothing says that it has changed."""

    path: Path
    label: str  # path below its model folder, printable
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int  # changes with permissions, and when an older file is moved here
    identity: tuple[int, int]  # device and inode: two links to one file have the same

    @property
    def stem(self) -> str:
        """Name without `.gguf` and without the part number."""
        part = _PART.fullmatch(self.path.stem)
        return part["stem"] if part else self.path.stem

    @property
    def part(self) -> tuple[int, int]:
        """(number, count) of a part as its name says it; (1, 1) for a whole model."""
        part = _PART.fullmatch(self.path.stem)
        return (int(part["number"]), int(part["count"])) if part else (1, 1)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model, in the order of their part numbers."""

    parts: tuple[ModelFile, ...]

    @property
    def first(self) -> ModelFile:
        return self.parts[0]

    @property
    def fingerprint(self) -> str:
        """A name for this content, as far as names, sizes and times tell: what is known of the files is kept by it."""
        seen = [(file.path.name, file.size, file.mtime_ns) for file in self.parts]
        return hashlib.sha256(repr(seen).encode("utf-8", "surrogateescape")).hexdigest()[:32]

    @property
    def missing(self) -> str:
        """Names of the parts that are not there, at most three of them; empty when all are."""
        count = self.first.part[1]
        there = {file.part[0] for file in self.parts if file.part[0] <= count}
        lacking = (number for number in range(1, count + 1) if number not in there)
        names = ", ".join(_part_name(self.first, number) for number in islice(lacking, 3))
        num_more = count - len(there) - 3
        return f"{names} and {num_more} more" if num_more > 0 else names


@dataclass(slots=True)
class Found:
    """What one search found."""

    files: list[ModelFile] = field(default_factory=list)
    faults: list[ModelFault] = field(default_factory=list)


def find_model_files(folders: Sequence[Path]) -> Found:
    """Every GGUF file below `folders`, folder by folder and by name within one. Hidden names are left out."""
    found = Found()
    for folder in folders:
        budget = _Budget(MAX_ENTRIES, MAX_FILES)
        _search(folder, folder, MAX_DEPTH, budget, found)
        if budget.exhausted:
            reason = f"more than {MAX_ENTRIES} entries or {MAX_FILES} models are in this folder; the rest is ignored"
            found.faults.append(ModelFault(file=printable(str(folder)), reason=reason))
    # A folder may be given twice, or inside another one.
    unique: dict[Path, ModelFile] = {}
    for file in found.files:
        unique.setdefault(file.path, file)
    return Found(list(unique.values()), found.faults)


def group_parts(files: Sequence[ModelFile]) -> list[ModelFiles]:
    """Files gathered into models. Parts belong together when folder, stem and count are the same."""
    groups: dict[tuple[Path, str, int], list[ModelFile]] = {}
    for file in files:
        # A whole model has count 1 and so stays apart from a part that has its stem.
        key = (file.path.parent, file.path.stem if file.part[1] == 1 else file.stem, file.part[1])
        groups.setdefault(key, []).append(file)
    return [ModelFiles(tuple(sorted(group, key=lambda file: file.part))) for group in groups.values()]


def printable(text: str) -> str:
    """`text` fit for messages and terminals: control characters and undecodable bytes become `?`."""
    return "".join(char if char.isprintable() else "?" for char in text)


@dataclass(slots=True)
class _Budget:
    entries: int
    files: int

    @property
    def exhausted(self) -> bool:
        return self.entries < 0 or self.files < 0


def _search(root: Path, folder: Path, depth: int, budget: _Budget, found: Found) -> None:
    for entry in _entries(root, folder, budget, found):
        path = folder / entry.name
        label = printable(str(path.relative_to(root)))
        is_model = entry.name.lower().endswith(SUFFIX)
        try:
            status = entry.stat()
        except OSError as error:
            if is_model:
                reason = f"it cannot be read ({error.strerror}); mend or remove the link or its permissions"
                found.faults.append(ModelFault(file=label, reason=reason))
            continue
        if stat.S_ISDIR(status.st_mode):
            if entry.is_symlink():
                reason = "links to folders are not followed; name the folder itself in PACKTRAIN_MODELS"
                found.faults.append(ModelFault(file=label, reason=reason))
            elif depth > 0:
                _search(root, path, depth - 1, budget, found)
            else:
                reason = f"folders are searched {MAX_DEPTH} deep; name this one in PACKTRAIN_MODELS"
                found.faults.append(ModelFault(file=label, reason=reason))
        elif is_model:
            budget.files -= 1
            if budget.exhausted:
                return
            found.files.append(
                ModelFile(
                    path=path,
                    label=label,
                    size=status.st_size,
                    mtime_ns=status.st_mtime_ns,
                    ctime_ns=status.st_ctime_ns,
                    identity=(status.st_dev, status.st_ino),
                )
            )


def _entries(root: Path, folder: Path, budget: _Budget, found: Found) -> Iterator[os.DirEntry[str]]:
    """The visible entries of `folder` by name, as far as the budget goes."""
    entries: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                budget.entries -= 1
                if budget.exhausted:
                    break
                if not entry.name.startswith("."):
                    entries.append(entry)
    except OSError as error:
        label = printable(str(folder if folder == root else folder.relative_to(root)))
        reason = f"this model folder cannot be read ({error.strerror}); create it, or correct PACKTRAIN_MODELS"
        found.faults.append(ModelFault(file=label, reason=reason))
    for entry in sorted(entries, key=lambda entry: entry.name):
        if budget.exhausted:
            return
        yield entry


def parts_of(path: Path) -> list[Path]:
    """All parts of the model whose first or only part this is, as their names say it."""
    part = _PART.fullmatch(path.stem)
    if not part:
        return [path]
    count = int(part["count"])
    return [path.with_stem(f"{part['stem']}-{number:05d}-of-{count:05d}") for number in range(1, count + 1)]


def _part_name(file: ModelFile, number: int) -> str:
    return printable(f"{file.stem}-{number:05d}-of-{file.part[1]:05d}{SUFFIX}")
