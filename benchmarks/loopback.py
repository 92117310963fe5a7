"""A deployment on one machine: SuperLink and SuperNodes on loopback, with TLS and SuperNode authentication.

As docs/deployment.md has it, with every machine a folder of its own. The deployment benchmark and the tests run on it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import ssl
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import tomli_w

from fedgh_app.runs import processes
from fedgh_app.runtimes.keys import make_keys
from fedgh_app.runtimes.superlink import free_port

SCRIPTS = Path(sysconfig.get_path("scripts"))
FEDGH = [sys.executable, "-c", "from fedgh_app.cli import main; main()"]  # of this checkout, whatever is installed
START_SECONDS = 120.0


@dataclass
class Loopback:
    """A SuperLink, and what speaks to it.

    Attributes:
        folder: keys, logs and each machine's own files.
        address: host:port of the SuperLink.
        environment: environment of the server's processes, in which ``flwr`` and ``fedgh run`` find the SuperLink.
        mark: what every process carries that was started for it.
        nodes: the SuperNodes by site.
    """

    folder: Path
    address: str
    environment: dict[str, str]
    mark: str
    superlink: subprocess.Popen[bytes]
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def keys(self) -> Path:
        """What ``fedgh deploy keys`` wrote."""
        return self.folder / "keys"

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of Flower's on the server."""
        command = [str(SCRIPTS / "flwr"), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=START_SECONDS)

    def register(self, site: str) -> None:
        """Let the SuperLink know a site."""
        done = self.flwr("supernode", "register", str(self.keys / "server" / f"{site}.pub"), "fedgh", "--name", site)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    def start(self, site: str, data: Path, *, warm: bool = True, secured: Sequence[str] | None = None) -> None:
        """Start the SuperNode of a site on images in ``data``.

        Args:
            site: its name, whose keys it uses.
            data: its data root.
            warm: with the executor that keeps libraries loaded; else Flower's own.
            secured: options in place of its certificate and key.
        """
        home = self.folder / site
        home.mkdir(exist_ok=True)
        if secured is None:
            own = self.keys / site
            secured = [f"--root-certificates={own / 'ca.crt'}", f"--auth-supernode-private-key={own / 'supernode.key'}"]
        command = [*FEDGH, "deploy", "supernode"] if warm else [str(SCRIPTS / "flower-supernode")]
        options = [f"--superlink={self.address}", f"--port={free_port()}", *secured]
        with (self.folder / f"{site}.log").open("wb") as log:
            self.nodes[site] = subprocess.Popen(
                [*command, *options, f'--node-config=name="{site}" data-root="{data}"'],
                env={**self.environment, "FLWR_HOME": str(home / "flwr"), "FEDGH_HOME": str(home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, site: str) -> str:
        """What a SuperNode and its ClientApps have said."""
        return (self.folder / f"{site}.log").read_text()


@contextlib.contextmanager
def loopback(folder: Path, sites: Sequence[str]) -> Iterator[Loopback]:
    """A SuperLink that is up, with keys for ``sites``, none of which is registered; it ends with all SuperNodes."""
    make_keys(folder / "keys", ["localhost"], sites)
    server, port, mark = folder / "keys" / "server", free_port(), secrets.token_hex(8)
    environment = {
        **os.environ,
        processes.MARK: mark,
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }
    connection = {"address": f"127.0.0.1:{port}", "root-certificates": str(server / "ca.crt")}
    (folder / "flwr").mkdir()
    (folder / "flwr" / "config.toml").write_text(tomli_w.dumps({"superlink": {"fedgh": connection}}))
    with (folder / "superlink.log").open("wb") as log:
        superlink = subprocess.Popen(
            [
                str(SCRIPTS / "flower-superlink"),
                f"--port={port}",
                f"--ssl-ca-certfile={server / 'ca.crt'}",
                f"--ssl-certfile={server / 'server.crt'}",
                f"--ssl-keyfile={server / 'server.key'}",
                "--enable-supernode-auth",
                "--disable-runtime-dependency-installation",
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    made = Loopback(folder, f"127.0.0.1:{port}", environment, mark, superlink)
    try:
        _wait_until_up(made)
        yield made
    finally:
        started = [*made.nodes.values(), superlink]
        for process in started:
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        processes.end_marked(mark)
        for process in started:
            process.wait()


def _wait_until_up(made: Loopback) -> None:
    context = ssl.create_default_context(cafile=made.keys / "server" / "ca.crt")
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and made.superlink.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"https://{made.address}/health", verify=context, timeout=1).is_success:
                return
        time.sleep(0.1)
    raise RuntimeError((made.folder / "superlink.log").read_text())
