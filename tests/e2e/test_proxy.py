"""The one port that the network sees: the shipped nginx configuration, in front of SuperLink as its unit starts it."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from conftest import TINY
from fastapi.routing import iter_route_contexts
from servers import PATIENCE, SCRIPTS, Server, fedgh
from shipped import PROXY, allowed

from fedgh_app.pose.arms.generated import generate
from fedgh_app.runs import storage
from fedgh_app.runtimes.superlink import free_port

REFUSAL = "Only SuperNodes are served here"
# By these a SuperNode without a registered key admits itself, where SuperNode authentication is off.
SELF_ADMISSION = {("POST", "/v1/fleet/register-node"), ("POST", "/v1/fleet/unregister-node")}


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


@contextlib.contextmanager
def proxied(folder: Path, sites: list[str]) -> Iterator[Server]:
    """A SuperLink behind the proxy."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if nginx is None:
        pytest.skip("needs nginx (Debian: nginx-light)")
    public = f"127.0.0.1:{free_port()}"
    with servers.server(folder, sites, public) as made:
        shipped = PROXY.read_text()
        for there, here in {
            "listen 443": f"listen {public}",
            "server 127.0.0.1:8000": f"server {made.loopback}",
            "/etc/fedgh/": f"{made.keys}/server/",
            "/var/log/nginx/": f"{folder}/",
        }.items():
            assert there in shipped
            shipped = shipped.replace(there, here)
        (folder / "fedgh.conf").write_text(shipped)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in kinds)
        (folder / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;"
            f"events {{}} http {{ {temporary} include {folder}/fedgh.conf; }}"
        )
        made.start("nginx.log", nginx, "-c", str(folder / "nginx.conf"))
        made.start_superlink()
        yield made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with proxied(tmp_path_factory.mktemp("proxy"), ["site-a", "stranger"]) as made:
        yield made


def test_a_registered_supernode_trains_through_the_proxy(server: Server) -> None:
    server.start_site("site-a")
    assert server.double(str(server.folder / "app")) == {"site-a": True}


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
    common = ["--root-certificates", str(server.keys / "server" / "ca.crt"), "--port", str(free_port())]
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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_federation_of_two_sites_runs_through_the_proxy(home: Path, tmp_path: Path) -> None:
    sites = ["site-a", "site-b"]
    with proxied(tmp_path, sites) as server:
        for seed, name in enumerate(sites):
            generate(tmp_path / f"data-{name}", count=40, seed=seed, image_size=(96, 96))
            server.start_site(name, data=tmp_path / f"data-{name}")
        overrides = ["runtime.superlink=loopback", "partition=site", "num_clients=2", "evaluate.central_every=0"]
        overrides += [*TINY, "model=shufflenet_v2", "runtime.client_cpus=1"]
        started = ["run", "runtime=deployment", "run_dir=run", *overrides]
        done = fedgh(tmp_path, *started, env=server.environment, seconds=500)
        assert done.returncode == 0, done.stdout + done.stderr
        result = storage.read_json(tmp_path / "run" / "result.json")
        assert (result["rounds"], result["rejected"]) == (2, [])
        assert (tmp_path / "access.log").read_text() == ""  # nothing that a SuperNode called was refused
