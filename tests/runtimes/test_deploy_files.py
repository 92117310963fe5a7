"""What `deploy/` ships: that the tools accept it, and that its parts name the same ports and folders."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from shipped import COMPOSE, DEPLOY, PROXY, UNITS, options, service_command, services, unit_command

SUPPLIED = {"FEDGH_SUPERLINK": "server.example.org:443", "FEDGH_SITE": "site-a", "FEDGH_DATA": "/d", "FEDGH_KEYS": "/k"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda file: file.stem)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (Debian: systemd)")
    for file in UNITS:  # they name each other; and the programs, which are looked for, lie elsewhere here
        (tmp_path / file.name).write_text(
            file.read_text().replace("/opt/fedgh/.venv/bin", str(Path(sys.executable).parent))
        )
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / unit.name], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in done.stderr.splitlines() if "fedgh" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.stem)
def test_docker_compose_accepts_the_file(file: Path) -> None:
    compose = ["docker", "compose"]
    if shutil.which("docker") is None or subprocess.run([*compose, "version"], capture_output=True).returncode:
        pytest.skip("needs docker with its compose plugin (no daemon)")
    done = subprocess.run(
        [*compose, "-f", file, "config", "--format", "json"],
        env={**os.environ, **SUPPLIED},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["services"]) == set(services(file))


def test_compose_says_what_is_to_be_supplied_and_holds_none_of_it() -> None:
    for file in COMPOSE:
        asked = set(re.findall(r"\$\{(\w+)", file.read_text()))
        assert asked and asked <= set(SUPPLIED)
        assert set(re.findall(r"\$\{(\w+):\?", file.read_text())) == asked  # said clearly where it is missing


def test_superlink_is_on_loopback_where_the_proxy_looks_for_it_and_knows_its_nodes() -> None:
    for said in (options(unit_command("fedgh-superlink")), options(service_command("server", "superlink"))):
        assert f"server {said['--host']}:{said['--port']};" in PROXY.read_text()
        assert said["--host"] == "127.0.0.1"
        assert "--enable-supernode-auth" in said
        assert Path(said["--ssl-certfile"]).name == "server.crt"
        assert said["--database"].startswith("/var/lib/fedgh/")
    assert services(DEPLOY / "compose/server.yaml")["superlink"]["network_mode"] == "host"
    assert not any("ports" in service for file in COMPOSE for service in services(file).values())


def test_a_site_runs_the_app_apart_from_its_key_and_the_network() -> None:
    unit = (DEPLOY / "systemd/fedgh-clientapp.service").read_text()
    assert "supernode.key" not in unit
    assert {"IPAddressDeny=any", "IPAddressAllow=localhost"} <= set(unit.splitlines())
    site = yaml.safe_load((DEPLOY / "compose/site.yaml").read_text())
    assert site["services"]["clientapp"]["networks"] == ["inside"]
    assert site["networks"]["inside"] == {"internal": True}
    assert not any(volume.endswith(":/etc/fedgh:ro") for volume in site["services"]["clientapp"]["volumes"])
    assert not any("FEDGH_DATA" in volume for volume in site["services"]["supernode"]["volumes"])
    for node, app in [
        (options(unit_command("fedgh-supernode")), options(unit_command("fedgh-clientapp"))),
        (options(service_command("site", "supernode")), options(service_command("site", "clientapp"))),
    ]:
        assert node["--isolation"] == "process"
        assert 'data-root="/srv/fedgh"' in node["--node-config"]
        assert app["--runtime-api-address"].split(":")[1] == node["--port"]
        assert Path(node["--superexec-auth-secret-file"]).name == Path(app["--superexec-auth-secret-file"]).name


def test_the_page_shows_the_refusal_as_it_is() -> None:
    page = (DEPLOY.parent / "docs" / "deployment.md").read_text()
    assert re.search("return 404 '(.*)';", PROXY.read_text())[1] in page
