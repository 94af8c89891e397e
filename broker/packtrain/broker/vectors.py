"""Vectors on the wire: base64 of 32-bit little-endian floats, a quarter of what they take as JSON numbers.

Every bit survives, so that equal receipts mean equal vectors.
"""

from __future__ import annotations

import base64
import binascii
import sys
from array import array

FLOAT_BYTES = 4


def to_wire(vector: bytes) -> str:
    """32-bit little-endian floats as text."""
    return base64.b64encode(vector).decode()


def from_wire(text: str) -> tuple[float, ...]:
    """The floats again.

    Raises:
        ValueError: It is no such text.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a vector of {len(text)} characters is no base64 ({error})") from None
    if len(data) % FLOAT_BYTES:
        raise ValueError(f"a vector of {len(data)} bytes is no row of {FLOAT_BYTES}-byte floats")
    floats = array("f", data)
    if sys.byteorder != "little":
        floats.byteswap()
    return tuple(floats)
