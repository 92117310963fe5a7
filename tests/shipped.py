"""What `deploy/` ships, read for tests that check it and for tests that run it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
PROXY = DEPLOY / "nginx" / "fedgh.conf"
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
COMPOSE = sorted(DEPLOY.glob("compose/*.yaml"))


def unit_command(name: str) -> list[str]:
    """The command that a systemd unit starts, its variables as they stand there."""
    text = (DEPLOY / "systemd" / f"{name}.service").read_text().replace("\\\n", " ")
    return shlex.split(re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1])


def services(file: Path) -> dict[str, Any]:
    """The services of a compose file."""
    return dict(yaml.safe_load(file.read_text())["services"])


def service_command(file: str, name: str) -> list[str]:
    """The command that a service of `deploy/compose/FILE.yaml` starts."""
    return list(services(DEPLOY / "compose" / f"{file}.yaml")[name]["command"])


def options(command: list[str]) -> dict[str, str]:
    """The options of a command, given as ``--key value`` or ``--key=value``; "" for one without a value."""
    found: dict[str, str] = {}
    key = ""
    for word in command[1:]:
        if word.startswith("--"):
            key, _, found[key] = word.partition("=")
        else:
            found[key] = word
    return found


def allowed() -> set[tuple[str, str]]:
    """The methods and paths that the proxy lets through."""
    return set(re.findall(r'"([A-Z]+) (/\S+)"\s+1;', PROXY.read_text()))
