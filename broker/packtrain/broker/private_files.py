"""Private files: passwords and what holds them, readable by this user alone from their first byte on.

A file that is written first and restricted afterwards can be opened by another user in between. So each is created
with mode 0600 under another name, and renamed into place: readers see the old text or the new one, never half of it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from packtrain.broker.errors import SetupError


def private_folder(folder: Path) -> Path:
    """`folder`, made when absent, with mode 0700.

    Raises:
        SetupError: It cannot be made, or belongs to another user.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise SetupError(
            f"cannot use {folder} as a private folder ({error.strerror}); choose another `--home`"
        ) from error
    return folder


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step, mode 0600."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


def kept_secret(path: Path) -> str:
    """The secret in `path`; when absent, 192 new random bits, which later calls return again."""
    try:
        secret = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        secret = ""
    if not secret:
        secret = secrets.token_hex(24)
        write_private(path, secret + "\n")
    path.chmod(0o600)
    return secret
