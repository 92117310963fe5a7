"""Signed bundles: what a site that names trusted entities runs, and nothing else.

A SuperNode with ``--trusted-entities`` runs an app only if somebody in that file has signed its bundle. In Flower such
bundles come from its hub. Here whoever has read a bundle signs it, and a small server on loopback answers what a
SuperLink asks the hub (``POST /hub/fetch-fab`` of Flower 1.41). Sites check signatures, so they need not trust it.
"""

import base64
import hashlib
import http.server
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm

from fedgh_app.errors import UserError
from fedgh_app.flower import (
    create_message_to_sign,
    get_fab_config,
    get_metadata_from_config,
    load_private_key,
    sign_message,
)
from fedgh_app.runs import storage

ENTITY = re.compile(r"[A-Za-z0-9_-]{1,64}")


def sign_bundle(bundle: Path, key: Path, entity: str) -> Path:
    """Sign a bundle (``.fab``), with the time, as Flower does, and return the signature's file, beside the bundle.

    The ``key`` is OpenSSH's, Ed25519, without a passphrase; ``entity`` is what sites call its owner. UserError where
    there is no bundle or no such key, or a name has other letters than a key of YAML takes bare.
    """
    if not ENTITY.fullmatch(entity):
        raise UserError(f"--as {entity!r}: expected letters, digits, '_' and '-'")
    name_of(bundle)
    try:
        private = load_private_key(key)
    except (OSError, ValueError, UnsupportedAlgorithm):
        raise UserError(f"--key {key}: expected an OpenSSH private key, Ed25519, without a passphrase") from None
    now = int(time.time())
    signature = sign_message(private, create_message_to_sign(hashlib.sha256(bundle.read_bytes()).digest(), now))
    encoded = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    file = bundle.with_name(f"{bundle.name}.{entity}.json")
    storage.write_json(file, {"public_key_id": entity, "signature": encoded, "signed_at": now})
    return file


def signatures(bundle: Path) -> list[dict[str, Any]]:
    """The signatures that lie beside a bundle."""
    return [storage.read_json(file) for file in sorted(bundle.parent.glob(f"{bundle.name}.*.json"))]


def name_of(bundle: Path) -> tuple[str, str]:
    """What ``flwr run`` calls a bundle: ``@publisher/name`` and version. Raises UserError where it is none."""
    try:
        name, version = get_metadata_from_config(get_fab_config(bundle))
    except Exception:  # of zipfile, tomli and Flower
        raise UserError(f"{bundle}: expected a bundle that `flwr build` wrote") from None
    return f"@{name}", version


class BundleServer(http.server.ThreadingHTTPServer):
    """Answers SuperLink's questions for bundles, on loopback alone."""

    def __init__(self, bundles: Sequence[Path], port: int) -> None:
        self.bundles = {name_of(bundle): bundle for bundle in bundles}  # by name and version
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; expected a free port") from None


class _Handler(http.server.BaseHTTPRequestHandler):
    server: BundleServer

    def do_POST(self) -> None:
        """Where a bundle is, and who has signed it. What else SuperLink asks, only the hub could answer."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        wanted = asked.get("app_id"), asked.get("app_version")
        for name, version in self.server.bundles:
            if self.path == "/hub/fetch-fab" and wanted in ((name, version), (name, None)):
                address = f"http://127.0.0.1:{self.server.server_port}/{name}/{version}"
                signed = signatures(self.server.bundles[name, version])
                return self._answer(200, json.dumps({"fab_url": address, "verifications": signed}).encode())
        return self._answer(404, b"{}")

    def do_GET(self) -> None:
        """A bundle."""
        for name, version in self.server.bundles:
            if self.path == f"/{name}/{version}":
                return self._answer(200, self.server.bundles[name, version].read_bytes())
        return self._answer(404, b"{}")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
