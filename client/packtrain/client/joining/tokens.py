"""Codes and tokens as people handle them.

A token is what a code and mDNS together are: where the pairing service is, which invitation is meant, and its secret.
"""

from __future__ import annotations

import base64
import binascii
import re

from pydantic import ValidationError

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.fields import Report
from packtrain.broker.invites import CODE_DIGITS

_PREFIX = "pt1-"
_GROUP = 3


class Token(Report):
    """What a join token says."""

    invite: str
    secret: str
    addresses: tuple[str, ...]
    port: int

    def __str__(self) -> str:
        return _PREFIX + base64.urlsafe_b64encode(self.model_dump_json().encode()).decode().rstrip("=")


def parse_token(text: str) -> Token:
    """The token again.

    Raises:
        InvalidParameter: It is none, or was cut while it was copied.
    """
    body = text.strip().removeprefix(_PREFIX)
    try:
        return Token.model_validate_json(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (ValidationError, binascii.Error, ValueError):
        raise InvalidParameter(
            f"{text[:12]!r}... is no join token; copy the whole line that `packtrain invite` printed", field="join"
        ) from None


def spaced(code: str) -> str:
    """A code as people read it.

    >>> spaced("482915306")
    '482-915-306'
    """
    return "-".join(code[at : at + _GROUP] for at in range(0, len(code), _GROUP))


def parse_code(text: str) -> str:
    """The digits of a code, however they are grouped.

    >>> parse_code(" 482 915-306 ")
    '482915306'

    Raises:
        InvalidParameter: They are not as many as a code has.
    """
    digits = re.sub(r"[\s.-]", "", text)
    if len(digits) != CODE_DIGITS or not digits.isascii() or not digits.isdecimal():
        raise InvalidParameter(
            f"{text!r} is no pairing code; it has {CODE_DIGITS} digits, and `packtrain invite` on the head shows it",
            field="code",
        )
    return digits
