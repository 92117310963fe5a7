"""Starts one run in its runtime, shows it, and leaves no process behind.

Simulation and deployment go through Flower: ``flwr run`` from a staged copy of the app, the outcome from Flower's
status and from ``result.json`` (`superlink`: whose SuperLink it is).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import tomli_w
from flwr.cli.run_utils import format_runs
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, StopRunRequest
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from omegaconf import DictConfig

from fedgh_app.assembly.server import Assembly
from fedgh_app.config.compose import compose_config, join_overrides, quoted
from fedgh_app.config.settings import Runtime, Settings
from fedgh_app.errors import RunFailed, UserError, first_line
from fedgh_app.resources import APP_FILES, SHIPPED
from fedgh_app.runs import resumption
from fedgh_app.runs.checkpoints import newest
from fedgh_app.runs.directory import CLIENTS, LOG, STOP
from fedgh_app.runs.history import HISTORY
from fedgh_app.runs.records import FAILURE, Failure
from fedgh_app.runs.result import RESULT, Result
from fedgh_app.runtimes import baselines
from fedgh_app.runtimes.baselines import display_of
from fedgh_app.runtimes.progress import Display
from fedgh_app.runtimes.superlink import (
    START_SECONDS,
    STOP_SECONDS,
    SuperLink,
    control_of,
    environment_of,
    flwr,
    private_superlink,
    script,
)
from fedgh_app.vision.cores import usable_cores

STATUS_SECONDS = 3.0  # between two questions about the run's status; each is a line in the SuperLink's log
SILENCE_SECONDS = 60.0


def launch(overrides: Sequence[str], directory: Path, *, quiet: bool = False) -> Result:
    """Run one federation (or baseline) to its end.

    Args:
        overrides: the run's overrides.
        directory: the run directory; must not hold another run, but with ``resume`` the one that goes on.
        quiet: no live progress.

    Returns:
        What it came to.

    Raises:
        UserError: bad input; nothing was started.
        RunFailed: the run ended early; the message is one line that says why.
    """
    directory = directory.resolve()
    overrides = [*overrides, f"run_dir={quoted(directory)}"]
    config = compose_config(overrides)
    overrides += absolute_paths(config)
    config = compose_config(overrides)
    held = any((directory / name).exists() for name in (HISTORY, RESULT, CLIENTS))
    if held and config.resume is None:
        raise UserError(
            f"run_dir={directory}: holds a run already; expected a new or empty directory, or resume={directory}"
        )
    assembly = Assembly(config)
    assembly.check()
    settings = assembly.settings
    if settings.resume is not None:
        if settings.runtime.name == "local":
            raise UserError("runtime=local: it is one run for each client, which cannot be resumed; expected a new run")
        newest(directory, settings.rounds)
    if settings.runtime.name in ("local", "centralised"):
        run = baselines.run_local if settings.runtime.name == "local" else baselines.run_centralised
        return run(assembly, overrides, directory, quiet=quiet)
    nodes = 0
    if settings.runtime.name != "deployment":
        nodes = sum(assembly.data.clients_of().values())
        if settings.num_clients is None:
            overrides.append(f"num_clients={nodes}")  # the server then waits for all of them
        if not assembly.data.held_by_sites:
            assembly.data.deal(nodes)
    title = f"{assembly.strategy_name} on {assembly.data.name}"
    with (
        resumption.claimed(directory, overrides) as mark,
        display_of(assembly, directory, title, quiet=quiet) as display,
    ):
        if settings.runtime.name == "inprocess":
            baselines.run_inprocess(overrides, directory, nodes, display)
        elif settings.runtime.name == "deployment":
            _deploy(settings, overrides, directory, display, mark)
        else:
            _simulate(settings.runtime, overrides, directory, nodes, display, mark)
    return Result.read(directory)


def absolute_paths(config: DictConfig) -> list[str]:
    """Overrides that make every path absolute: Flower's processes have working directories of their own."""
    paths: dict[str, str | None] = {
        "init": config.init,
        "resume": config.resume,
        "teacher.run": config.teacher.get("run"),
    }
    paths |= dict(_data_roots(config))
    weights = config.model.get("weights")
    if weights and Path(weights).expanduser().exists():  # else it is the name of a torchvision enum
        paths["model.weights"] = weights
    return [f"{key}={quoted(Path(value).expanduser().resolve())}" for key, value in paths.items() if value is not None]


def _data_roots(node: DictConfig, path: str = "") -> Iterator[tuple[str, str]]:
    """Where each data set of the config lies, by the key that says so."""
    for key, value in node.items():
        if isinstance(value, DictConfig):
            yield from _data_roots(value, f"{path}{key!s}.")
        elif key == "root":
            yield f"{path}root", value


def _simulate(
    runtime: Runtime, overrides: Sequence[str], directory: Path, nodes: int, display: Display, mark: str
) -> None:
    """Run on Flower's Ray simulation."""
    cpus = runtime.client_cpus or 1
    # Ray starts an actor for every client_cpus of these: more than there are clients would only take memory.
    cores = max(cpus, min(usable_cores(), nodes * cpus))
    federation = {
        "num-supernodes": nodes,
        "client-resources-num-cpus": cpus,
        "client-resources-num-gpus": runtime.client_gpus,
        "init-args-num-cpus": cores,
    }
    options = ["--federation-config", " ".join(f"{key}={value}" for key, value in federation.items())]
    with private_superlink(cpus, directory, mark) as superlink:
        _run_on(superlink, overrides, directory, display, "starting Ray and the clients", *options)


def _deploy(settings: Settings, overrides: Sequence[str], directory: Path, display: Display, mark: str) -> None:
    """Run on the SuperLink of a deployment, which goes on running, as the SuperNodes do."""
    superlink = SuperLink(settings.runtime.superlink, environment_of(mark))
    with control_of(superlink) as control:
        _await_sites(control, settings, display)
    _run_on(superlink, overrides, directory, display, "asking the sites who they are")


def _run_on(
    superlink: SuperLink, overrides: Sequence[str], directory: Path, display: Display, waiting: str, *options: str
) -> None:
    """One `flwr run`, from its start to its end."""
    with tempfile.TemporaryDirectory(prefix="fedgh-") as folder:
        app = _stage(Path(folder))
        run_config = Path(folder) / "run.toml"
        run_config.write_text(tomli_w.dumps({"overrides": join_overrides(overrides)}))
        arguments = [str(app), superlink.connection, "--run-config", str(run_config), *options, "--format", "json"]
        started = flwr(superlink, "run", *arguments)
    if not started.get("run-id"):
        raise RunFailed(f"flwr run did not start: {started.get('error-message') or started}")
    run_id = int(started["run-id"])
    display.stage(waiting)
    try:
        with control_of(superlink) as control:
            try:
                _watch(superlink, control, run_id, directory, display)
            except (KeyboardInterrupt, SystemExit):
                display.stage("stopping")
                _ask_to_stop(directory)
                with contextlib.suppress(httpx.HTTPError):  # which it did by itself, if it could
                    control.StopRun(StopRunRequest(run_id=run_id))
                raise
    finally:
        _keep_log(superlink, run_id, directory / LOG)


def _ask_to_stop(directory: Path) -> None:
    """Let the ServerApp end the run itself, which writes model and plots and finishes W&B, but wait only so long."""
    (directory / STOP).touch()
    end = time.monotonic() + STOP_SECONDS
    while not (directory / FAILURE).exists() and time.monotonic() < end:
        time.sleep(0.1)


def _keep_log(superlink: SuperLink, run_id: int, file: Path) -> None:
    """Append what ServerApp and clients said, which only the SuperLink has, to the run's log."""
    with contextlib.suppress(subprocess.SubprocessError), file.open("ab") as log:
        command = [script("flwr"), "log", str(run_id), superlink.connection, "--show"]
        subprocess.run(command, env=superlink.environment, stdout=log, stderr=log, timeout=START_SECONDS, check=False)


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


def _watch(superlink: SuperLink, control: ControlHttpClient, run_id: int, directory: Path, display: Display) -> None:
    """Show progress until Flower says that the run has finished; raise if it did not complete."""
    before = _written(directory / RESULT)  # of a run that had ended and now goes on
    asked = heard = time.monotonic()
    while True:
        display.update()
        time.sleep(0.25)
        ended = _written(directory / RESULT) != before or (directory / FAILURE).exists()
        if superlink.process is not None and superlink.process.poll() is not None:
            raise RunFailed(f"the SuperLink ended with status {superlink.process.returncode}; see {LOG}")
        if not ended and time.monotonic() - asked < STATUS_SECONDS:
            continue
        asked = time.monotonic()
        try:
            answer = control.ListRuns(ListRunsRequest(run_id=run_id))
        except httpx.HTTPError as error:  # busy; a private SuperLink that has ended is seen above
            if superlink.process is None and asked - heard > SILENCE_SECONDS:
                raise RunFailed(
                    f"the SuperLink has not answered for {SILENCE_SECONDS:g} seconds: {first_line(error)}"
                ) from None
            continue
        heard = time.monotonic()
        row = format_runs([run_from_proto(run) for run in answer.run_dict.values()], answer.now)[0]
        if row.status_text.startswith("finished"):
            break
    display.update()
    if row.status_text != "finished:completed" or _written(directory / RESULT) == before:
        _raise_failure(directory, f"the server's process ended without a word ({row.details or row.status_text})")


def _written(file: Path) -> float | None:
    return file.stat().st_mtime if file.exists() else None


def _raise_failure(directory: Path, otherwise: str) -> None:
    if not (directory / FAILURE).exists():
        raise RunFailed(otherwise.splitlines()[0])
    failure = Failure.read(directory)
    raise (UserError if failure.user else RunFailed)(failure.error)


def _stage(folder: Path) -> Path:
    """A copy of the app without what lies beside it: a checkout's data and runs, or other installed packages."""
    app = folder / "app"
    app.mkdir()
    for name, source in APP_FILES.items():
        if source.is_dir():
            shutil.copytree(source, app / name, ignore=shutil.ignore_patterns("__pycache__", SHIPPED.name))
        elif source.exists():
            shutil.copy2(source, app / name)
    return app
