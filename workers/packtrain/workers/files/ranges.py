"""The `Range` header of HTTP (RFC 9110, section 14), as far as we serve it: one range of bytes. Pure."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


class RangeUnsatisfiable(Exception):
    """No byte of the file lies in the range."""


def byte_range(header: str | None, size: int) -> range | None:
    """The bytes that a header asks for; None: all of them, as the standard has it for what is not understood.

    Raises:
        RangeUnsatisfiable: It begins behind the end.

    >>> byte_range("bytes=2-", 10), byte_range("bytes=2-5", 10), byte_range("bytes=-3", 10), byte_range("lines=1", 10)
    (range(2, 10), range(2, 6), range(7, 10), None)
    """
    match = _RANGE.fullmatch(header or "")
    if not match or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if not first:  # the last so many
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= stop:
        raise RangeUnsatisfiable
    return range(start, stop)
