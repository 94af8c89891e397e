"""TLS in which each side takes exactly one certificate of the other, and nothing else in the world.

Names and authorities play no part. TLS 1.3 only, so there is nothing to choose and nothing to downgrade.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal

#: `entry` takes connections of this machine and carries them away; `exit` takes them from there.
Role = Literal["entry", "exit"]


def tls(role: Role, *, certificate_file: Path, key_file: Path, peer: str) -> ssl.SSLContext:
    """For one end of a tunnel.

    Args:
        peer: Certificate of the other end, PEM.

    Raises:
        ssl.SSLError: A certificate or key cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if role == "entry" else ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate_file, key_file)
    context.load_verify_locations(cadata=peer)
    return context


def is_from(connection: ssl.SSLObject | ssl.SSLSocket, peer: str) -> bool:
    """Whether the other side of a connection showed this very certificate, and not one that it has signed."""
    return connection.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(peer)
