"""Uploaded files and batches' results, in a folder: `files/<id>/content` beside `files/<id>/about.json`.

A file shows up whole or not at all, for its folder is renamed into place. An id becomes a path only after it was
checked to be one of ours, and a file's name never does. Several gateways may share the folder.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import ValidationError

from packtrain.broker.fields import Report
from packtrain.broker.private_files import private_folder, write_private
from packtrain.client.gateway.access import Caller

#: Characters of a name that is kept.
MAX_NAME: Final = 255
#: Drafts of uploads that broke off are removed after this long, seconds.
DRAFT_KEPT_S: Final = 24 * 3600

Order = Literal["asc", "desc"]
T = TypeVar("T", bound="Owned")


class Owned(Report):
    """Something in a folder of its own."""

    id: str
    owner: str | None = None  # id of the API key that made it; None: there was none
    created_at: int = 0  # seconds


class StoredFile(Owned):
    """What is known of a file."""

    bytes: int
    filename: str
    purpose: str = "batch"


def is_visible(thing: Owned, caller: Caller) -> bool:
    """Whether a caller may know of it."""
    return caller.is_admin or thing.owner == caller.key_id


class Shelf:
    """Folders named by ids, each with `about.json` in it.

    Args:
        root: Made when absent.
        prefix: Of the ids.
    """

    def __init__(self, root: Path, prefix: str) -> None:
        self.root = private_folder(root)
        self._prefix = prefix
        self._is_id = re.compile(re.escape(prefix) + "[0-9a-f]{32}")

    def new_id(self) -> str:
        """A fresh id. Later ones sort behind earlier ones; half of it is random, so that none can be guessed."""
        return f"{self._prefix}{time.time_ns():016x}{secrets.token_hex(8)}"

    def folder(self, thing_id: str) -> Path | None:
        """Where a thing is; None: this is no id of ours."""
        return self.root / thing_id if self._is_id.fullmatch(thing_id) else None

    def draft(self) -> Path:
        """A folder to fill; nobody sees it before `place`."""
        self._sweep()
        draft = self.root / f".draft-{secrets.token_hex(8)}"
        draft.mkdir(mode=0o700)
        return draft

    def place(self, draft: Path, about: Owned) -> None:
        """Have a filled folder be seen. One that is there already stays, and the draft goes."""
        write_private(draft / "about.json", about.model_dump_json())
        target = self.folder(about.id)
        assert target, about.id
        try:
            draft.rename(target)
        except OSError:
            if not target.exists():
                raise
            shutil.rmtree(draft, ignore_errors=True)

    def about(self, thing_id: str, kind: type[T]) -> T | None:
        """What is known of a thing; None: there is none."""
        folder = self.folder(thing_id)
        if folder is None:
            return None
        try:
            return kind.model_validate_json((folder / "about.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None

    def remove(self, thing_id: str) -> None:
        """Remove a thing, in one step for those who look."""
        folder = self.folder(thing_id)
        if folder and folder.exists():
            gone = self.root / f".draft-{secrets.token_hex(8)}"
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def ids(self, order: Order = "asc") -> list[str]:
        """Ids of all things, by age."""
        found = [name for name in os.listdir(self.root) if self._is_id.fullmatch(name)]
        return sorted(found, reverse=order == "desc")

    def page(
        self, kind: type[T], wanted: Callable[[T], bool], *, after: str | None, limit: int, order: Order
    ) -> tuple[list[T], bool]:
        """Things behind the one with the id `after`, and whether there are more."""
        ids: Sequence[str] = self.ids(order)
        if after:
            ids = [each for each in ids if (each > after if order == "asc" else each < after)]
        found: list[T] = []
        for thing in self._all(ids, kind):
            if wanted(thing):
                if len(found) == limit:
                    return found, True
                found.append(thing)
        return found, False

    def _all(self, ids: Sequence[str], kind: type[T]) -> Iterator[T]:
        for thing_id in ids:
            if thing := self.about(thing_id, kind):
                yield thing

    def _sweep(self) -> None:
        for path in self.root.glob(".draft-*"):
            try:
                is_old = path.stat().st_mtime < time.time() - DRAFT_KEPT_S
            except FileNotFoundError:
                continue
            if is_old:
                shutil.rmtree(path, ignore_errors=True)


class FileStore(Shelf):
    """The files of a folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "files", "file-")

    def add(
        self, draft: Path, name: str, owner: str | None, *, purpose: str, now: int, file_id: str = ""
    ) -> StoredFile:
        """Have the `content` in a draft be a file.

        Args:
            name: As a person knows it.
            file_id: Its id; empty: a fresh one.
        """
        size = (draft / "content").stat().st_size
        about = StoredFile(
            id=file_id or self.new_id(), owner=owner, created_at=now, bytes=size, filename=plain_name(name),
            purpose=purpose,
        )  # fmt: skip
        self.place(draft, about)
        return about

    def get(self, file_id: str, caller: Caller) -> StoredFile | None:
        """A file that a caller may see."""
        found = self.about(file_id, StoredFile)
        return found if found and is_visible(found, caller) else None

    def content(self, file_id: str) -> Path:
        """Where the content of a file is."""
        folder = self.folder(file_id)
        assert folder, file_id
        return folder / "content"


def plain_name(name: str) -> str:
    """The last part of a name, without what a terminal or a header could stumble over.

    >>> plain_name("../../etc/pass\\nwd"), plain_name("..")
    ('passwd', 'file')
    """
    last = re.split(r"[/\\]", name)[-1]
    kept = "".join(char for char in last if char.isprintable()).strip().strip(".")
    return kept[:MAX_NAME] or "file"


def file_object(file: StoredFile) -> dict[str, object]:
    """A file as OpenAI's API shows it."""
    about = {"id": file.id, "object": "file", "bytes": file.bytes, "created_at": file.created_at}
    return {**about, "filename": file.filename, "purpose": file.purpose, "status": "processed", "expires_at": None}
