"""Certificates for tests: a CA, and what it signs."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

type_of_key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def pem(key: type_of_key, passphrase: bytes | None = None) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@dataclass
class Authority:
    """Signs certificates into a folder."""

    folder: Path
    name: str = "Test CA"
    key: ec.EllipticCurvePrivateKey = field(default_factory=ec_key)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.file = self.folder / f"{self.name.replace(' ', '-')}.pem"
        self.file.write_bytes(
            self._signed(self.name, self.key, is_ca=True).public_bytes(serialization.Encoding.PEM)
        )

    def write(
        self, stem: str, key: type_of_key | None = None, *, address: str | None = "127.0.0.1"
    ) -> tuple[Path, Path, int]:
        """`stem`.pem and `stem`.key, new or over what is there, the certificate first; and its serial number."""
        key = key or ec_key()
        made = self._signed(stem, key, is_ca=False, address=address)
        cert, private = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(pem(key))
        return cert, private, made.serial_number

    def _signed(
        self, name: str, key: type_of_key, *, is_ca: bool, address: str | None = None
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        if is_ca:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # noqa: FBT003
            builder = builder.add_extension(usage, critical=True)
        else:
            names = [x509.DNSName("interlock.test")]
            addresses = [x509.IPAddress(ip_address(address))] if address else []
            builder = builder.add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
        return builder.sign(self.key, hashes.SHA256())
