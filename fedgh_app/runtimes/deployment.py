"""``runtime=deployment``: the SuperLink of real machines, which goes on running, as their SuperNodes do."""

import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from fedgh_app.config.settings import Settings
from fedgh_app.errors import RunFailed, UserError, first_line
from fedgh_app.flower import ControlHttpClient, ListNodesRequest, NodeStatus
from fedgh_app.runtimes.flwr_run import run_on
from fedgh_app.runtimes.progress import Display
from fedgh_app.runtimes.superlink import SuperLink, control_of, environment_of


def deploy(settings: Settings, overrides: Sequence[str], directory: Path, display: Display, mark: str) -> None:
    """Run on the SuperLink of a deployment, once its sites are connected."""
    superlink = SuperLink(settings.runtime.superlink, environment_of(mark))
    with control_of(superlink) as control:
        _await_sites(control, settings, display)
    run_on(superlink, overrides, directory, display, "asking the sites who they are")


def _await_sites(control: ControlHttpClient, settings: Settings, display: Display) -> None:
    """Wait until ``num_clients`` SuperNodes are connected, or (null) any.

    Raises UserError, with the names that they were registered under, where another number is when the time is up;
    RunFailed where no SuperLink answers.
    """
    wanted, seconds = settings.num_clients, settings.runtime.node_timeout or 0.0
    end = time.monotonic() + seconds
    while True:
        try:
            nodes = control.ListNodes(ListNodesRequest()).nodes_info
        except httpx.HTTPError as error:
            raise RunFailed(f"runtime.superlink={settings.runtime.superlink}: {first_line(error)}") from None
        names: dict[str, list[str]] = {}
        for node in nodes:
            names.setdefault(node.status, []).append(node.name or str(node.node_id))
        here = sorted(names.get(NodeStatus.ONLINE, []))
        away = sorted(names.get(NodeStatus.OFFLINE, []) + names.get(NodeStatus.REGISTERED, []))
        if here and wanted in (None, len(here)):
            return
        if time.monotonic() > end or (wanted is not None and len(here) > wanted):
            waited = f" after {seconds:g} s of waiting (runtime.node_timeout)" if len(here) <= (wanted or 0) else ""
            raise UserError(
                f"num_clients={'null' if wanted is None else wanted}: connected{waited}: "
                f"{', '.join(here) or 'no SuperNode'}; registered and not connected: "
                f"{', '.join(away) or 'none'}; expected {wanted or 'at least 1'} connected"
            )
        display.stage(f"waiting for {', '.join(away) or 'a SuperNode'}")
        time.sleep(1.0)
