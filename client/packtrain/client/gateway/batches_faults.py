"""What keeps a batch from going on, and what that means for it. Pure.

    a model that cannot load, a broker that is away, a full disk    WAITS    somebody may mend it: it is tried again
    an input that was changed, a ledger that is damaged             BROKEN   nothing will mend it: the batch fails
    anything else                                                   DEFECT   nobody knows: it fails after some tries

However often it is tried, its time is over with its 24 hours.
"""

from __future__ import annotations

import sqlite3
from enum import Enum
from typing import Any, Final

from packtrain.broker.errors import InvalidRequest, PacktrainError

#: Tries of a batch whose process ends for reasons that nobody foresaw, in all.
MOST_DEFECTS: Final = 5
#: SQLite's codes for what may pass: a full disk, one that cannot be read or written now, too little memory, a lock.
_PASSING: Final = frozenset(
    {
        sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT,
    }
)  # fmt: skip
_PRIMARY: Final = 0xFF  # of an extended result code


class Meaning(Enum):
    """Of a failure, for its batch."""

    WAITS = "somebody may mend it"
    BROKEN = "nothing will mend it"
    DEFECT = "nobody knows"


def meaning_of(error: BaseException) -> Meaning:
    """What a failure means."""
    cause = _behind(error)
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & _PRIMARY
        return Meaning.WAITS if code in _PASSING else Meaning.BROKEN
    if isinstance(cause, InvalidRequest):
        return Meaning.BROKEN
    return Meaning.WAITS if isinstance(cause, PacktrainError | OSError) else Meaning.DEFECT


def said_of(error: BaseException) -> str:
    """A failure as one sentence for who ordered the batch: no path of this machine stands in it."""
    cause = _behind(error)
    match cause:
        case sqlite3.Error():
            passes = meaning_of(cause) is Meaning.WAITS
            remedy = "the operator has to make room, or to mend the disk" if passes else "order what is left again"
            return f"what is known of the batch's rows cannot be read or written ({cause}); {remedy}"
        case OSError():
            why = cause.strerror or type(cause).__name__
            return f"the batch's files cannot be read or written ({why}); the operator has to make room, or to mend it"
        case InvalidRequest():
            return "the batch's input is not what it was when it was begun; order what is left again"
        case PacktrainError():
            return str(cause)
    return f"the batch's process failed ({type(cause).__name__}); the gateway's log says how, please report it"


def _behind(error: BaseException) -> BaseException:
    """A failure of files as it was before it was put into words for the command line; others as they are."""
    cause = error.__cause__
    return cause if isinstance(cause, sqlite3.Error | OSError) else error


def fault(code: str, message: str) -> dict[str, Any]:
    """A fault of a whole batch, as OpenAI's `errors.data` has them."""
    return {"code": code, "message": message, "line": None, "param": None}
