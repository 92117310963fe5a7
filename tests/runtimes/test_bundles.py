"""Signed bundles: signatures as Flower's SuperNode checks them, and a server as Flower's SuperLink asks it."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import PrivateFormat
from flwr.supercore.fab import Fab
from flwr.superlink.servicer.control import control_handlers
from flwr.supernode.start_client_internal import _verify_fab
from servers import signing_key, write_app

from fedgh_app.errors import UserError
from fedgh_app.runtimes.bundles import BundleServer, sign_bundle
from fedgh_app.runtimes.keys import _write_private_key


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    from flwr.cli.build import build_fab_from_disk

    file = tmp_path / "double.fab"
    file.write_bytes(build_fab_from_disk(write_app(tmp_path / "app")))
    return file


def test_what_superlink_is_given_a_supernode_accepts_from_whom_it_trusts_and_nobody_else(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = signing_key(tmp_path, "reviewer"), signing_key(tmp_path, "other")
    sign_bundle(bundle, key, "fpk_lab")
    server = BundleServer([bundle], 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(control_handlers, "FLWR_SUPERGRID_API_URL", f"http://127.0.0.1:{server.server_port}")
    content, verifications, _ = control_handlers._get_remote_fab(None, "@fedgh/double==1.0.0")
    assert content == bundle.read_bytes()
    assert verifications["valid_license"]  # without which a SuperNode looks at no signature
    fab = Fab("", content, verifications)
    assert _verify_fab(fab, {"fpk_lab": key.with_suffix(".pub").read_text()})
    assert not _verify_fab(fab, {"fpk_lab": other.with_suffix(".pub").read_text()})
    assert not _verify_fab(fab, {"fpk_else": key.with_suffix(".pub").read_text()})
    assert not _verify_fab(Fab("", content + b" ", verifications), {"fpk_lab": key.with_suffix(".pub").read_text()})
    other_question = httpx.post(f"http://127.0.0.1:{server.server_port}/hub/connect-run", json={"run_id": 1})
    assert other_question.status_code == 404
    with pytest.raises(Exception, match="FAB"):
        control_handlers._get_remote_fab(None, "@fedgh/double==9.9.9")
    server.shutdown()
    server.server_close()


def test_a_bad_bundle_key_or_name_is_one_line_and_no_signature(bundle: Path, tmp_path: Path) -> None:
    key = signing_key(tmp_path, "reviewer")
    _write_private_key(tmp_path / "other", PrivateFormat.OpenSSH)  # a site's: ECDSA
    for arguments, words in [
        ((tmp_path / "none.fab", key, "fpk_lab"), "none.fab: expected a bundle"),
        ((key, key, "fpk_lab"), "reviewer: expected a bundle"),
        ((bundle, tmp_path / "none", "fpk_lab"), "none: expected an OpenSSH private key"),
        ((bundle, tmp_path / "other", "fpk_lab"), "Ed25519"),
        ((bundle, key, "../lab"), "--as '../lab'"),
    ]:
        with pytest.raises(UserError, match=words):
            sign_bundle(*arguments)
    assert not list(tmp_path.glob("*.json"))
