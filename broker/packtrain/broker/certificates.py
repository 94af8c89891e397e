"""A private certificate authority for one fleet, and the certificate of its broker.

    <folder>/ca.pem      what others must know to trust the broker; public
    <folder>/ca.key      signs; made once, never leaves the head
    <folder>/broker.pem  of the broker, made anew at each start with the addresses of that time
    <folder>/broker.key

They are good for ten years: `up` runs for months, and a certificate that ends meanwhile would end the fleet. Who should
be trusted no more is no matter of certificates here: clients have passwords. `deploy/tls/make-ca.sh` makes the same by
openssl, for a broker or gateway of your own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from packtrain.broker.errors import SetupError
from packtrain.broker.private_files import private_folder, write_private

LIFE = timedelta(days=3650)
#: Clocks of machines differ.
SKEW = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a server with TLS needs to know; PEM files."""

    ca: Path
    certificate: Path
    key: Path


def broker_files(folder: Path, names: Sequence[str]) -> TlsFiles:
    """Certificate and key of a broker that is reached by these names and addresses. The authority is made when absent.

    Raises:
        SetupError: `cryptography` is not installed, or what is there cannot be read.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        raise SetupError(
            "TLS needs `cryptography`, which is not installed; install packtrain with its [worker] or [join] extra"
        ) from None

    private_folder(folder)
    files = TlsFiles(folder / "ca.pem", folder / "broker.pem", folder / "broker.key")
    ca_key_file, now = folder / "ca.key", datetime.now(UTC)

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def new_key(file: Path) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(file, pem.decode())
        return key

    def begun(subject: x509.Name, key: ec.EllipticCurvePrivateKey, issuer: x509.Name) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + LIFE)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    if not files.ca.exists():
        ca_key, name = new_key(ca_key_file), named("Packtrain fleet")
        signing = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = begun(name, ca_key, name).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        made = builder.add_extension(signing, critical=True).sign(ca_key, hashes.SHA256())
        write_private(files.ca, made.public_bytes(serialization.Encoding.PEM).decode())
    try:
        authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
        ca_key = serialization.load_pem_private_key(ca_key_file.read_bytes(), None)  # type: ignore[assignment]
    except (OSError, ValueError) as error:
        raise SetupError(
            f"the authority in {folder} cannot be read ({error}); put ca.pem and ca.key back, or delete the folder: "
            "then a new one is made, and all machines join again"
        ) from error
    key = new_key(files.key)
    reached_by = x509.SubjectAlternativeName([_name(name) for name in dict.fromkeys(names)])
    certificate = (
        begun(named("Packtrain broker"), key, authority.subject)
        .add_extension(reached_by, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_private(files.certificate, certificate.public_bytes(serialization.Encoding.PEM).decode())
    return files


def _name(text: str):  # type: ignore[no-untyped-def]  # a class of a package that may be absent
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
