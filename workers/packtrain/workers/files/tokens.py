"""Tokens: what a node shows to read a model file of another one. Pure.

Who can reach the broker knows the fleet's secret, random bits that have nothing to do with the broker's password. A
token is the HMAC of one node, one path and one moment under it. So neither secret nor password crosses the wire, and
what somebody overhears opens that one file for a minute.
"""

from __future__ import annotations

import hmac

SCHEME = "Packtrain"
LIFETIME_S = 60


def sign(secret: str, node: str, path: str, now_s: float) -> str:
    """The value of the `Authorization` header for one request.

    Args:
        node: That is asked.
        path: Of the URL.
        now_s: On the broker's clock, which all nodes share.
    """
    until = int(now_s) + LIFETIME_S
    return f"{SCHEME} {until}.{_digest(secret, node, path, until)}"


def refusal(secret: str, node: str, path: str, header: str, now_s: float) -> str:
    """Why this header does not open the path; empty when it does.

    >>> token = sign("s", "n1", "/models/a/0", 1000)
    >>> refusal("s", "n1", "/models/a/0", token, 1060), refusal("s", "n1", "/models/a/0", token, 1061)
    ('', 'the token is over since 1 s')
    """
    scheme, _, token = header.partition(" ")
    until, _, digest = token.partition(".")
    if scheme != SCHEME or not (until.isascii() and until.isdigit()):
        return "it needs a token of this fleet"
    if not hmac.compare_digest(digest.encode(), _digest(secret, node, path, int(until)).encode()):
        return "the token is not one of this fleet, node and file"
    if now_s > int(until):
        return f"the token is over since {now_s - int(until):.0f} s"
    return ""


def _digest(secret: str, node: str, path: str, until: int) -> str:
    return hmac.digest(secret.encode(), f"{node}\n{path}\n{until}".encode(), "sha256").hex()
