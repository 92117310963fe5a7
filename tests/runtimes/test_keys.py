"""Keys and certificates: what Flower reads of them, who else may, and what is refused."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve

from fedgh_app.errors import UserError
from fedgh_app.runtimes.keys import add_site, make_keys, renew


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", ["fl.example.org", "192.0.2.7"], ["site-a", "site-b"])
    return tmp_path / "keys"


def test_the_keys_are_those_that_flower_reads(folder: Path) -> None:
    for site in ("site-a", "site-b"):
        private = load_ssh_private_key((folder / site / "supernode.key").read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert uses_nist_ec_curve(private.public_key())
        assert try_load_public_key(folder / "server" / f"{site}.pub") == public_key_to_bytes(private.public_key())
        assert (folder / site / "ca.crt").read_bytes() == (folder / "server" / "ca.crt").read_bytes()


def test_the_certificate_names_the_server_and_loopback(folder: Path) -> None:
    found = x509.load_pem_x509_certificate((folder / "server" / "server.crt").read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    addresses = [ipaddress.ip_address(text) for text in ("192.0.2.7", "127.0.0.1", "::1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    found.verify_directly_issued_by(x509.load_pem_x509_certificate((folder / "server" / "ca.crt").read_bytes()))


def test_only_the_owner_may_read_private_keys_and_git_sees_none(folder: Path) -> None:
    private = {"ca.key", "server.key", "supernode.key"}
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {file.name for file in files if b"PRIVATE" in file.read_bytes()} == private
    assert all(file.stat().st_mode & 0o077 == 0 for file in files if file.name in private)
    assert (folder / ".gitignore").read_text() == "*\n"


def test_keys_in_use_are_not_overwritten(folder: Path) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"keys: exists; expected a new folder"):
        make_keys(folder, ["fl.example.org"], ["site-a"])
    with pytest.raises(UserError, match=r"site-a: exists; expected a new site"):
        add_site(folder, "site-a")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("host", "sites", "message"),
    [
        ("https://fl.example.org", ["a"], "--host 'https://fl.example.org': expected a DNS name"),
        ("fl.example.org:443", ["a"], "without scheme and port"),
        ("", ["a"], "--host '': expected"),
        ("fl.example.org", ["../a"], "site '../a': expected letters"),
        ("fl.example.org", ["server"], "not 'server'"),
        ("fl.example.org", ["a", "a"], "--site a: named twice"),
    ],
)
def test_a_name_that_is_none_leaves_nothing(tmp_path: Path, host: str, sites: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_keys(tmp_path / "keys", [host], sites)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_command_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedgh_app.runtimes.keys._write_site", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_keys(tmp_path / "keys", ["fl.example.org"], ["a"])
    assert list(tmp_path.iterdir()) == []


def test_a_site_and_a_certificate_can_be_added_later(folder: Path) -> None:
    add_site(folder, "site-c")
    assert (folder / "site-c" / "supernode.key").stat().st_mode & 0o077 == 0
    assert try_load_public_key(folder / "server" / "site-c.pub")
    renew(folder, ["new.example.org"])
    server = folder / "server"
    context = ssl.create_default_context(cafile=server / "ca.crt")
    context.load_cert_chain(server / "server.crt", server / "server.key")  # raises where the two do not belong together
    assert b"new.example.org" in ssl.PEM_cert_to_DER_cert((server / "server.crt").read_text())
    (folder / "ca.key").unlink()
    with pytest.raises(UserError, match=r"ca.key: no such file"):
        renew(folder, ["new.example.org"])
