"""The keys and certificates that a SuperLink and its SuperNodes need to trust each other.

TLS tells a site that it talks to the server that it means; the SuperNode's own key tells the server which site is
talking (``flower-superlink --enable-supernode-auth``). Formats are those that Flower 1.41 reads: PEM for TLS, OpenSSH
for SuperNodes.
"""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedgh_app.errors import UserError
from fedgh_app.vision.files import replacing, staged

CURVE = ec.SECP384R1()
LOOPBACK = ("localhost", "127.0.0.1", "::1")
AUTHORITY = "fedgh certificate authority"
AUTHORITY_DAYS = 3650
# Of a machine, and of a folder: nothing that a path or a shell gives a meaning.
SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


def make_keys(out: Path, hosts: Sequence[str], sites: Sequence[str], *, days: int = 825) -> None:
    """Write a new folder with all keys and certificates of a federation.

    ``ca.key`` signs server certificates; ``server/`` holds ``ca.crt``, ``server.crt``, ``server.key`` and
    ``<site>.pub`` of each site; ``<site>/`` holds ``ca.crt`` and ``supernode.key``. Only their owner may read private
    keys.

    The ``hosts`` are DNS names and IP addresses of the server, to which loopback is added; its certificate is valid for
    so many ``days``. UserError for a name that is none, or is used twice, or a folder that holds something.
    """
    names = _subject_alternatives(hosts)
    for number, name in enumerate(sites):
        _check_site(name)
        if name in sites[:number]:
            raise UserError(f"--site {name}: named twice; expected a different name for each site")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists; expected a new folder, for keys in use must not be lost")
    with staged(out) as folder:
        # Whoever commits the folder by mistake commits nothing.
        (folder / ".gitignore").write_text("*\n")
        authority = _write_private_key(folder / "ca.key")
        server = folder / "server"
        server.mkdir()
        ca = _certificate(authority, authority, AUTHORITY, AUTHORITY_DAYS)
        (server / "ca.crt").write_bytes(ca)
        key = _write_private_key(server / "server.key")
        (server / "server.crt").write_bytes(_certificate(key, authority, hosts[0], days, names))
        for name in sites:
            _write_site(folder, name)


def add_site(out: Path, name: str) -> None:
    """Write the keys of one more site into the folder that `make_keys` wrote.

    Raises UserError where that is no such folder, or the site has keys there.
    """
    _check_site(name)
    if not (out / "server" / "ca.crt").exists():
        raise UserError(f"{out}: holds no server/ca.crt; expected a folder that `fedgh deploy keys` wrote")
    if (out / name).exists() or (out / "server" / f"{name}.pub").exists():
        raise UserError(f"{out / name}: exists; expected a new site, for keys in use must not be lost")
    _write_site(out, name)


def renew(out: Path, hosts: Sequence[str], *, days: int = 825) -> None:
    """Replace ``server/server.crt``, for the same private key.

    Raises UserError where a host is none, or the folder lacks a key.
    """
    names = _subject_alternatives(hosts)
    authority, key = (_read_private_key(out / name) for name in ("ca.key", "server/server.key"))
    with replacing(out / "server" / "server.crt") as draft:
        draft.write_bytes(_certificate(key, authority, hosts[0], days, names))


def _read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a folder that `fedgh deploy keys` wrote, with its ca.key")
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _check_site(name: str) -> None:
    if not SITE.fullmatch(name) or name in ("server", "ca.key"):
        raise UserError(
            f"site {name!r}: expected letters, digits, '-', '_' and '.', beginning with a letter or digit, not 'server'"
        )


def _subject_alternatives(hosts: Sequence[str]) -> list[x509.GeneralName]:
    return [_subject_alternative(host) for host in dict.fromkeys([*hosts, *LOOPBACK])]


def _subject_alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not all(LABEL.fullmatch(label) for label in host.removeprefix("*.").split(".")):
        raise UserError(f"--host {host!r}: expected a DNS name or an IP address, without scheme and port")
    return x509.DNSName(host)


def _write_site(folder: Path, name: str) -> None:
    with staged(folder / name) as site:
        (site / "ca.crt").write_bytes((folder / "server" / "ca.crt").read_bytes())
        key = _write_private_key(site / "supernode.key", PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / "server" / f"{name}.pub").write_bytes(public + f" {name}\n".encode())


def _write_private_key(path: Path, form: PrivateFormat = PrivateFormat.PKCS8) -> ec.EllipticCurvePrivateKey:
    """A new key, in a file that at no moment anybody else could read."""
    key = ec.generate_private_key(CURVE)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, form, NoEncryption()))
    return key


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    authority: ec.EllipticCurvePrivateKey,
    common_name: str,
    days: int,
    names: Sequence[x509.GeneralName] = (),
) -> bytes:
    """PEM of a certificate for ``key``: a server's with ``names``, the authority's own without."""
    is_authority = not names
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of machines differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(_key_usage(is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(authority, hashes.SHA384()).public_bytes(Encoding.PEM)


def _key_usage(is_authority: bool) -> x509.KeyUsage:
    encryption = ("key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
    unused = dict.fromkeys(("content_commitment", *encryption), False)
    return x509.KeyUsage(
        digital_signature=not is_authority, key_cert_sign=is_authority, crl_sign=is_authority, **unused
    )
