"""The one port that the network sees: the shipped nginx configuration, in front of SuperLink as its unit starts it."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import ssl
import subprocess
import sysconfig
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from shipped import PROXY, allowed, unit_command

from fedgh_app import processes
from fedgh_app.deploy import make_keys
from fedgh_app.launcher import _free_port

pytestmark = pytest.mark.xdist_group("proxy")
SCRIPTS = Path(sysconfig.get_path("scripts"))
PATIENCE = 60.0
REFUSAL = "Only SuperNodes are served here"
# By these a SuperNode without a registered key admits itself, where SuperNode authentication is off.
SELF_ADMISSION = {("POST", "/v1/fleet/register-node"), ("POST", "/v1/fleet/unregister-node")}

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
            replies = [reply.content for reply in grid.send_and_receive(messages, timeout=100)]
            whole = [bool((reply["a"].to_numpy_ndarrays()[0] == 2 * sent).all()) for reply in replies]
            names = [reply["c"]["name"] for reply in replies]
            Path(context.run_config["answer"]).write_text(json.dumps([names, whole]))
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


def superlink_routes() -> set[tuple[str, str]]:
    """Every method and path that the installed SuperLink answers."""
    from flwr.superlink.main import create_app

    contexts = list(iter_route_contexts(create_app().routes))
    return {(method, context.path) for context in contexts for method in context.route.methods}


def test_the_proxy_lets_through_what_supernodes_call_and_nothing_by_which_they_admit_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when an upgrade of Flower adds a route for SuperNodes, or takes one away."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    fleet = {route for route in superlink_routes() if route[1].startswith("/v1/fleet/")}
    assert fleet >= SELF_ADMISSION
    assert allowed() == fleet - SELF_ADMISSION


@dataclass
class Server:
    """A SuperLink on loopback behind the proxy.

    Attributes:
        folder: for files of the tests.
        keys: what `fedgh deploy keys` wrote.
        public: the proxy's address.
        loopback: SuperLink's own.
        environment: of every process.
    """

    folder: Path
    keys: Path
    public: str
    loopback: str
    environment: dict[str, str]

    def start(self, log: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a program whose output goes to a file."""
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(command, env=self.environment, stdout=file, stderr=subprocess.STDOUT)

    def start_unit(self, name: str, **values: str) -> subprocess.Popen[bytes]:
        """Start what a systemd unit starts, with ``values`` for its variables and addresses."""
        program, *arguments = unit_command(name)
        for key, value in values.items():
            arguments = [argument.replace(key, value) for argument in arguments]
        return self.start(f"{name}.log", str(SCRIPTS / Path(program).name), *arguments)

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call the `flwr` command."""
        return subprocess.run(
            [SCRIPTS / "flwr", *arguments], env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )


def wait(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, f"{what} took more than {PATIENCE:g} seconds"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if nginx is None:
        pytest.skip("needs nginx (Debian: nginx-light)")
    folder = tmp_path_factory.mktemp("proxy")
    keys = folder / "keys"
    make_keys(keys, ["127.0.0.1"], ["site-a", "stranger"])
    public, loopback = f"127.0.0.1:{_free_port()}", f"127.0.0.1:{_free_port()}"
    mark = secrets.token_hex(8)
    environment = {
        **os.environ,
        processes.MARK: mark,
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "COLUMNS": "200",
    }
    (folder / "flwr").mkdir()
    (folder / "flwr/config.toml").write_text(
        "".join(
            f'[superlink.{name}]\naddress = "{address}"\nroot-certificates = "{keys}/server/ca.crt"\n'
            for name, address in (("public", public), ("loopback", loopback))
        )
    )
    for file, text in APP.items():
        (folder / "app" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "app" / file).write_text(textwrap.dedent(text))
    shipped = PROXY.read_text()
    for there, here in {
        "listen 443": f"listen {public}",
        "server 127.0.0.1:8000": f"server {loopback}",
        "/etc/fedgh/": f"{keys}/server/",
        "/var/log/nginx/": f"{folder}/",
    }.items():
        assert there in shipped
        shipped = shipped.replace(there, here)
    (folder / "fedgh.conf").write_text(shipped)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;"
        f"events {{}} http {{ {temporary} include {folder}/fedgh.conf; }}"
    )
    made = Server(folder, keys, public, loopback, environment)
    try:
        made.start("nginx.log", nginx, "-c", str(folder / "nginx.conf"))
        start_superlink(made)
        yield made
    finally:
        processes.end_marked(mark)


def start_superlink(server: Server) -> subprocess.Popen[bytes]:
    """Start SuperLink as its unit does, and wait for it."""
    superlink = server.start_unit(
        "fedgh-superlink",
        **{
            "${CREDENTIALS_DIRECTORY}": str(server.keys / "server"),
            "/var/lib/fedgh": str(server.folder),
            "8000": server.loopback.split(":")[1],
        },
    )
    context = ssl.create_default_context(cafile=server.keys / "server" / "ca.crt")

    def healthy() -> bool:
        assert superlink.poll() is None, (server.folder / "fedgh-superlink.log").read_text()
        try:
            return httpx.get(f"https://{server.loopback}/health", verify=context).is_success
        except httpx.TransportError:
            return False

    wait(healthy, "SuperLink")
    return superlink


@pytest.fixture(scope="module")
def site(server: Server) -> Server:
    """A site as its two units start it, registered on loopback, which reaches SuperLink through the proxy."""
    registered = server.flwr(
        "supernode", "register", str(server.keys / "server" / "site-a.pub"), "loopback", "--name", "site-a"
    )
    assert registered.returncode == 0, registered.stdout + registered.stderr
    (server.keys / "site-a" / "superexec.secret").write_text(secrets.token_urlsafe(32))
    values = {
        "${CREDENTIALS_DIRECTORY}": str(server.keys / "site-a"),
        "${SUPERLINK}": server.public,
        "${SITE}": "site-a",
        "9094": str(_free_port()),
    }
    server.start_unit("fedgh-supernode", **values)
    server.start_unit("fedgh-clientapp", **values)
    wait(lambda: "SuperNode ID" in (server.folder / "fedgh-supernode.log").read_text(), "the SuperNode")
    return server


def test_a_registered_supernode_trains_through_the_proxy(site: Server) -> None:
    answer = site.folder / "answer.json"
    started = site.flwr("run", str(site.folder / "app"), "loopback", "--run-config", f'answer="{answer}"')
    assert started.returncode == 0, started.stdout + started.stderr
    wait(answer.exists, "the run")
    assert json.loads(answer.read_text()) == [["site-a"], [True]]


def test_control_is_refused_in_public_and_works_on_loopback(server: Server) -> None:
    key = str(server.keys / "server" / "stranger.pub")
    for command in (["run", str(server.folder / "app")], ["ls"], ["supernode", "register", key]):
        done = server.flwr(*command, "public")
        assert done.returncode != 0
        assert REFUSAL in done.stdout + done.stderr
    assert server.flwr("ls", "loopback").returncode == 0  # as the site's registration and the run above


@pytest.mark.parametrize(
    "key", [None, pytest.param("stranger", marks=pytest.mark.slow)], ids=["no key", "unregistered key"]
)
def test_a_supernode_that_was_not_registered_is_refused(server: Server, key: str | None) -> None:
    known = [] if key is None else ["--auth-supernode-private-key", str(server.keys / key / "supernode.key")]
    common = ["--root-certificates", str(server.keys / "server" / "ca.crt"), "--port", str(_free_port())]
    done = subprocess.run(
        [SCRIPTS / "flower-supernode", "--superlink", server.public, "--isolation", "process", *known, *common],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode != 0
    expected = "404 Not Found" if key is None else "Failed to activate SuperNode"
    assert expected in done.stdout + done.stderr


def test_every_other_path_ends_at_the_proxy(server: Server) -> None:
    """All routes of SuperLink but those, and spellings by which one path could pass for another."""
    others = superlink_routes() - allowed()
    assert len(others) > 60
    control = "/v1/control/list-runs"
    disguised = [
        control + "?/v1/fleet/pull-messages",
        control + "#/v1/fleet/pull-messages",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1",
        "//v1/control/list-runs",
        "/./v1/control/list-runs",
        "/v1/%63ontrol/list-runs",
        "http://" + server.loopback + control,
    ]
    context = ssl.create_default_context(cafile=server.keys / "server" / "ca.crt")
    host, port = server.public.split(":")
    for method, path in [*sorted(others), *(("POST", path) for path in disguised), ("GET", "/v1/fleet/get-run")]:
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
        connection.request(method, path, headers={"Content-Type": "application/protobuf"})
        answer = connection.getresponse()
        said = answer.read().decode()
        assert (answer.status, method == "HEAD" or REFUSAL in said) == (404, True), (method, path, answer.status, said)
        connection.close()
