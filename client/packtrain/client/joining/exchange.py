"""The exchange: two sides that know the same short secret come to the same strong key, or to nothing.

    guest                                         head
    element A ──────────────────────────────────►
              ◄────────────────────────────────── element B        (SPAKE2: both have a key now, or different ones)
    sealed name of the node ────────────────────►  does not open: refused, and nothing was learnt
              ◄────────────────────────────────── sealed way to the broker

Each direction is sealed by a key of its own (HKDF-SHA256), used once, so the nonce may be fixed.
"""

from __future__ import annotations

from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_A, SPAKE2_B

Side = Literal["guest", "head"]

_CONTEXT = b"packtrain pairing 1"
_NONCE = bytes(12)


class WrongSecret(Exception):
    """The other side does not know the same secret, or somebody changed what it said."""


class Key:
    """What both sides have in the end, if they knew the same."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, side: Side, data: bytes) -> bytes:
        """Data that this side sends; once only."""
        return ChaCha20Poly1305(self._derived(side)).encrypt(_NONCE, data, _CONTEXT)

    def open(self, side: Side, sealed: bytes) -> bytes:
        """What that side sent.

        Raises:
            WrongSecret
        """
        try:
            return ChaCha20Poly1305(self._derived(side)).decrypt(_NONCE, sealed, _CONTEXT)
        except InvalidTag:
            raise WrongSecret from None

    def _derived(self, side: Side) -> bytes:
        return HKDF(SHA256(), 32, salt=None, info=_CONTEXT + side.encode()).derive(self._key)


class Exchange:
    """One side of one exchange.

    Args:
        secret: Code or secret of a token.
        invite: Which invitation is meant, empty: the one whose code is asked for. Both sides must mean the same.
    """

    def __init__(self, side: Side, secret: str, invite: str) -> None:
        make = SPAKE2_A if side == "guest" else SPAKE2_B
        password = b"\0".join((_CONTEXT, invite.encode(), secret.encode()))
        self._spake = make(password, idA=b"packtrain guest", idB=b"packtrain head")
        self.element: bytes = self._spake.start()

    def key(self, element: bytes) -> Key:
        """The key, of what the other side sent.

        Raises:
            WrongSecret: That is no element of the group.
        """
        if len(element) != len(self.element):
            raise WrongSecret
        try:
            return Key(self._spake.finish(element))
        except Exception:  # of a stranger's bytes the library raises now this and now that
            raise WrongSecret from None
