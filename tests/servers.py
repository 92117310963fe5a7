"""Processes of their own: `fedgh`, and a SuperLink and SuperNodes, started as the units in `deploy/` start them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import ssl
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from shipped import unit_command

from benchmarks.loopback import SCRIPTS
from fedgh_app.runs import processes
from fedgh_app.runtimes.keys import make_keys
from fedgh_app.runtimes.superlink import free_port

FEDGH = (str(SCRIPTS / "fedgh"),)
PATIENCE = 60.0
OURS = str(os.getpid())  # other tests may run on this machine

# Sends every node 12 MB, which Flower cuts into three objects, and has them sent back doubled.
APP = {
    "pyproject.toml": """
        [project]
        name = "double"
        version = "1.0.0"
        description = "Doubles an array"
        license = "Apache-2.0"
        [tool.flwr.app]
        publisher = "fedgh"
        [tool.flwr.app.components]
        serverapp = "double.server:app"
        clientapp = "double.client:app"
        [tool.flwr.app.config]
        answer = ""
        """,
    "double/__init__.py": "",
    "double/server.py": """
        import json
        from pathlib import Path

        import numpy as np
        from flwr.app import ArrayRecord, Message, RecordDict
        from flwr.serverapp import ServerApp

        app = ServerApp()

        @app.main()
        def main(grid, context):
            sent = np.arange(3_000_000, dtype=np.float32)
            messages = [Message(RecordDict({"a": ArrayRecord([sent])}), node, "train") for node in grid.get_node_ids()]
            said = {}
            for reply in grid.send_and_receive(messages, timeout=100):
                if reply.has_error():
                    said[str(reply.metadata.src_node_id)] = reply.error.reason
                else:
                    doubled = reply.content["a"].to_numpy_ndarrays()[0]
                    said[reply.content["c"]["name"]] = bool((doubled == 2 * sent).all())
            Path(context.run_config["answer"]).write_text(json.dumps(said))
        """,
    "double/client.py": """
        from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
        from flwr.clientapp import ClientApp

        app = ClientApp()

        @app.train()
        def train(message, context):
            (received,) = message.content["a"].to_numpy_ndarrays()
            name = ConfigRecord({"name": context.node_config["name"]})
            return Message(RecordDict({"a": ArrayRecord([2 * received]), "c": name}), reply_to=message)
        """,
}


@dataclass
class Server:
    """A server and what its sites need.

    Attributes:
        folder: for files of the tests; holds the app to run.
        keys: what `fedgh deploy keys` wrote.
        loopback: SuperLink's address.
        public: where the network reaches it.
        environment: of every process.
    """

    folder: Path
    keys: Path
    loopback: str
    public: str
    environment: dict[str, str]

    def start(self, log: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a program whose output goes to a file."""
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(command, env=self.environment, stdout=file, stderr=subprocess.STDOUT)

    def start_unit(self, name: str, log: str, values: dict[str, str], *more: str) -> subprocess.Popen[bytes]:
        """Start what a systemd unit starts, with ``values`` for its variables, addresses and folders."""
        program, *arguments = unit_command(name)
        for key, value in values.items():
            arguments = [argument.replace(key, value) for argument in arguments]
        return self.start(log, str(SCRIPTS / Path(program).name), *arguments, *more)

    def start_superlink(self) -> None:
        """Start SuperLink and wait for it."""
        values = {
            "${CREDENTIALS_DIRECTORY}": str(self.keys / "server"),
            "/var/lib/fedgh": str(self.folder),
            "8000": self.loopback.split(":")[1],
        }
        superlink = self.start_unit("fedgh-superlink", "superlink.log", values)
        trusted = ssl.create_default_context(cafile=self.keys / "server" / "ca.crt")

        def healthy() -> bool:
            assert superlink.poll() is None, (self.folder / "superlink.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"https://{self.loopback}/health", verify=trusted).is_success
            return False

        wait(healthy, "SuperLink", PATIENCE)

    def start_site(self, name: str, *more: str, data: Path = Path("/nowhere")) -> None:
        """Register a site on loopback, start its two units with ``more`` options of the SuperNode, and wait for it."""
        key = str(self.keys / "server" / f"{name}.pub")
        registered = self.flwr("supernode", "register", key, "loopback", "--name", name)
        assert registered.returncode == 0, registered.stdout + registered.stderr
        (self.keys / name / "superexec.secret").write_text(secrets.token_urlsafe(32))
        values = {
            "${CREDENTIALS_DIRECTORY}": str(self.keys / name),
            "${SUPERLINK}": self.public,
            "${SITE}": name,
            "/srv/fedgh": str(data),
            "9094": str(free_port()),
        }
        self.start_unit("fedgh-supernode", f"{name}.log", values, *more)
        self.start_unit("fedgh-clientapp", f"{name}-app.log", values)
        wait(lambda: "SuperNode ID" in (self.folder / f"{name}.log").read_text(), "the SuperNode", PATIENCE)

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call the `flwr` command."""
        return subprocess.run(
            [SCRIPTS / "flwr", *arguments], env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )

    def double(self, app: str) -> dict[str, Any]:
        """What the sites answer in a run of the app that doubles."""
        answer = self.folder / "answer.json"
        answer.unlink(missing_ok=True)
        started = self.flwr("run", app, "loopback", "--run-config", f'answer="{answer}"')
        assert started.returncode == 0, started.stdout + started.stderr
        wait(lambda: answer.exists() and bool(answer.read_text()), "the run", PATIENCE)
        return dict(json.loads(answer.read_text()))


def signing_key(folder: Path, name: str) -> Path:
    """A new key to sign bundles with, as ssh-keygen writes it, with its public key beside it."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (folder / name).write_bytes(private)
    (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return folder / name


def wait(until: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"waited {seconds:g} seconds for {what}"
        time.sleep(0.1)


def environment(**more: str) -> dict[str, str]:
    """Of `fedgh` and what it starts, by which `survivors` knows them."""
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "FEDGH_TEST": OURS, "PATH": path, "COLUMNS": "160", "FLWR_DISABLE_UPDATE_CHECK": "1", **more}


def start_fedgh(
    folder: Path, *arguments: str, program: Sequence[str] = FEDGH, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `fedgh`, or what stands in its place, in a folder."""
    return subprocess.Popen(
        [*program, *arguments],
        cwd=folder,
        env=env or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fedgh(folder: Path, *arguments: str, seconds: float = 400, **more: Any) -> subprocess.CompletedProcess[str]:
    """`fedgh` to its end; ``more`` as `start_fedgh` takes it."""
    with start_fedgh(folder, *arguments, **more) as process:
        try:
            said, errors = process.communicate(timeout=seconds)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, said, errors)


def survivors() -> Iterator[psutil.Process]:
    """Processes that a run of these tests started and that still live."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            known = process.environ()
            if process.status() != psutil.STATUS_ZOMBIE and processes.MARK in known and known.get("FEDGH_TEST") == OURS:
                yield process


def left_behind() -> list[str]:
    """Their command lines."""
    found = []
    for process in survivors():
        with contextlib.suppress(psutil.Error, OSError):
            found.append(" ".join(process.cmdline()))
    return found


def write_app(folder: Path) -> Path:
    """The app that doubles, in a folder that is made for it."""
    for file, text in APP.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(textwrap.dedent(text))
    return folder


@contextlib.contextmanager
def server(folder: Path, sites: list[str], public: str | None = None, **environment: str) -> Iterator[Server]:
    """The keys and files of a server, for the sites named; ends what was started with its environment."""
    loopback = f"127.0.0.1:{free_port()}"
    made = Server(folder, folder / "keys", loopback, public or loopback, {})
    make_keys(made.keys, ["127.0.0.1"], sites)
    mark = secrets.token_hex(8)
    made.environment = {
        **os.environ,
        processes.MARK: mark,
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "COLUMNS": "200",
        **environment,
    }
    (folder / "flwr").mkdir()
    (folder / "flwr/config.toml").write_text(
        "".join(
            f'[superlink.{name}]\naddress = "{address}"\nroot-certificates = "{made.keys}/server/ca.crt"\n'
            for name, address in (("public", made.public), ("loopback", made.loopback))
        )
    )
    write_app(folder / "app")
    try:
        yield made
    finally:
        processes.end_marked(mark)
