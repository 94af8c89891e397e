"""Sizes and durations as people write them, in files and on the command line."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_DURATION = re.compile(r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)(s|m|h)")
_UNIT_S = {"s": 1, "m": 60, "h": 3600}


def parse_size(text: str) -> int:
    """Bytes of a size such as `12GB` (10^9), `8GiB` (2^30), `500M` or `1048576`.

    Raises:
        ValueError

    >>> parse_size("1.5GB"), parse_size("2GiB")
    (1500000000, 2147483648)
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write it like 12GB, 8GiB or 500MB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))


def parse_duration(text: str) -> float:
    """Seconds of a text such as `30s`, `10m` or `2h`.

    Raises:
        ValueError

    >>> parse_duration("1.5m")
    90.0
    """
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f'{text!r} is not a duration; give seconds, or a text such as "30s", "10m" or "2h"')
    return float(match[1]) * _UNIT_S[match[2]]
