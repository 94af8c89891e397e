"""What a node proves itself with: a key of its own, and a certificate that it signed itself.

Nobody has to sign it, since others take it for what it is and not for who made it: whoever starts both ends tells each
the certificate of the other. So there is no authority whose key could be lost, and a node may take a new key whenever
it begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from packtrain.broker.errors import SetupError
from packtrain.broker.private_files import private_folder, write_private

#: Longer than any agent runs; who is trusted is decided elsewhere.
LIFE = timedelta(days=3650)
#: Clocks of machines differ.
SKEW = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Identity:
    """Of one node."""

    certificate: str  # PEM, public
    certificate_file: Path
    key_file: Path  # mode 0600


def new_identity(folder: Path, node: str) -> Identity:
    """A new key and its certificate, in a folder that only we can read.

    Raises:
        SetupError: `cryptography` is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise SetupError(
            "a tunnel needs `cryptography`, which is not installed; install packtrain with its [worker] extra"
        ) from None
    private_folder(folder)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + LIFE)
        .sign(key, hashes.SHA256())
    )
    text = certificate.public_bytes(serialization.Encoding.PEM).decode()
    made = Identity(text, folder / "tunnel.pem", folder / "tunnel.key")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(made.key_file, pem.decode())
    write_private(made.certificate_file, text)
    return made
