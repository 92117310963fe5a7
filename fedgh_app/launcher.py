"""Starts one run in its runtime, shows it, and leaves no process behind.

Simulation and deployment go through Flower: ``flwr run`` from a staged copy of the app, the outcome from Flower's
status and from ``result.json``. For a simulation there is a private SuperLink on a free port; a deployment has one that
somebody else runs, and goes on running.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import tomli_w
import typer
from flwr.cli.constant import FLOWER_CONFIG_FILE
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.run_utils import format_runs
from flwr.cli.utils import init_http_client_from_connection
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, StopRunRequest
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.utils import get_flwr_home
from omegaconf import DictConfig

from fedgh_app import baselines, checkpoints, processes, resumption, server_app, site, storage
from fedgh_app.config import ROOT, compose_config, join_overrides, quoted
from fedgh_app.errors import RunFailed, first_line
from fedgh_app.pose.cores import usable_cores
from fedgh_app.pose.errors import UserError
from fedgh_app.progress import Display
from fedgh_app.screening import STOP_FILE

APP_FILES = ("fedgh_app", "strategies", "conf", "datasets", "pyproject.toml", "README.md", "LICENSE")
START_SECONDS = 60.0
STOP_SECONDS = 15.0
STATUS_SECONDS = 3.0  # between two questions about the run's status; each is a line in the SuperLink's log
SILENCE_SECONDS = 60.0


def launch(overrides: Sequence[str], directory: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Run one federation (or baseline) to its end.

    Args:
        overrides: the run's overrides.
        directory: the run directory; must not hold another run, but with ``resume`` the one that goes on.
        quiet: no live progress.

    Returns:
        The content of ``result.json``.

    Raises:
        UserError: bad input; nothing was started.
        RunFailed: the run ended early; the message is one line that says why.
    """
    directory = directory.resolve()
    overrides = [*overrides, f"run_dir={quoted(directory)}"]
    config = compose_config(overrides)
    overrides += absolute_paths(config)
    config = compose_config(overrides)
    held = any((directory / name).exists() for name in ("history.jsonl", "result.json", "clients"))
    if held and config.resume is None:
        raise UserError(
            f"run_dir={directory}: holds a run already; expected a new or empty directory, or resume={directory}"
        )
    server_app.check(config)
    runtime = config.runtime.name
    if config.resume is not None:
        if runtime == "local":
            raise UserError("runtime=local: it is one run for each client, which cannot be resumed; expected a new run")
        checkpoints.newest(directory, config.rounds)
    if runtime == "local":
        return baselines.run_local(config, overrides, directory, quiet=quiet)
    if runtime == "centralised":
        return baselines.run_centralised(config, overrides, directory, quiet=quiet)
    if runtime == "deployment":
        server_app.check_server_images(config)
        with resumption.claimed(directory, overrides) as mark, Display(config, directory, quiet=quiet) as display:
            _deploy(config, overrides, directory, display, mark)
        return storage.read_json(directory / "result.json")
    nodes = sum(site.clients_of(config).values())
    if config.num_clients is None:
        overrides.append(f"num_clients={nodes}")  # the server then waits for all of them
    if config.partition._target_ is not None:
        site.deal(config, nodes)
    with resumption.claimed(directory, overrides) as mark, Display(config, directory, quiet=quiet) as display:
        if runtime == "inprocess":
            baselines.run_inprocess(config, overrides, directory, nodes, display)
        else:
            _simulate(config, overrides, directory, nodes, display, mark)
    return storage.read_json(directory / "result.json")


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


@dataclass
class SuperLink:
    """The SuperLink of a run.

    Attributes:
        connection: its name in Flower's configuration.
        environment: environment for processes that talk to it, which finds that configuration.
        process: the SuperLink; None for one that somebody else runs.
    """

    connection: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None


def _simulate(
    config: DictConfig, overrides: Sequence[str], directory: Path, nodes: int, display: Display, mark: str
) -> None:
    """Run on Flower's Ray simulation."""
    # Ray starts an actor for every client_cpus of these: more than there are clients would only take memory.
    cores = max(config.runtime.client_cpus, min(usable_cores(), nodes * config.runtime.client_cpus))
    federation = {
        "num-supernodes": nodes,
        "client-resources-num-cpus": config.runtime.client_cpus,
        "client-resources-num-gpus": config.runtime.client_gpus,
        "init-args-num-cpus": max(cores, config.runtime.client_cpus),
    }
    options = ["--federation-config", " ".join(f"{key}={value}" for key, value in federation.items())]
    with _superlink(config, directory, mark) as superlink:
        _run_on(superlink, overrides, directory, display, "starting Ray and the clients", *options)


def _deploy(config: DictConfig, overrides: Sequence[str], directory: Path, display: Display, mark: str) -> None:
    """Run on the SuperLink of a deployment, which goes on running, as the SuperNodes do."""
    superlink = SuperLink(config.runtime.superlink, _environment(mark))
    with _control(superlink) as control:
        _await_sites(control, config, display)
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
        started = _flwr(superlink, "run", *arguments)
    if not started.get("run-id"):
        raise RunFailed(f"flwr run did not start: {started.get('error-message') or started}")
    run_id = int(started["run-id"])
    display.stage(waiting)
    try:
        with _control(superlink) as control:
            try:
                _watch(superlink, control, run_id, directory, display)
            except (KeyboardInterrupt, SystemExit):
                display.stage("stopping")
                _ask_to_stop(directory)
                with contextlib.suppress(httpx.HTTPError):  # which it did by itself, if it could
                    control.StopRun(StopRunRequest(run_id=run_id))
                raise
    finally:
        _keep_log(superlink, run_id, directory / "flower.log")


def _ask_to_stop(directory: Path) -> None:
    """Let the ServerApp end the run itself, which writes model and plots and finishes W&B, but wait only so long."""
    (directory / STOP_FILE).touch()
    end = time.monotonic() + STOP_SECONDS
    while not (directory / "failure.json").exists() and time.monotonic() < end:
        time.sleep(0.1)


def _keep_log(superlink: SuperLink, run_id: int, file: Path) -> None:
    """Append what ServerApp and clients said, which only the SuperLink has, to the run's log."""
    with contextlib.suppress(subprocess.SubprocessError), file.open("ab") as log:
        command = [_script("flwr"), "log", str(run_id), superlink.connection, "--show"]
        subprocess.run(command, env=superlink.environment, stdout=log, stderr=log, timeout=START_SECONDS, check=False)


@contextlib.contextmanager
def _control(superlink: SuperLink) -> Iterator[ControlHttpClient]:
    """What `flwr ls` and `flwr stop` ask through: a new Python process every second would take time from training.

    Raises UserError where Flower's configuration has no such connection.
    """
    name = superlink.connection
    try:
        with contextlib.redirect_stdout(None):
            connection = read_superlink_connection(name)
            if not connection.address or connection.address.startswith(":"):
                raise click.ClickException("it names Flower's own local SuperLink, which only simulates")
            client = init_http_client_from_connection(connection)
    except (click.ClickException, typer.Exit) as error:
        reason = str(getattr(error, "message", error)).splitlines()[0]
        raise UserError(
            f"runtime.superlink={name}: {reason} Expected [superlink.{name}] with address and root-certificates "
            f"in {get_flwr_home() / FLOWER_CONFIG_FILE} (docs/deployment.md)"
        ) from None
    try:
        yield client
    finally:
        client.close()


def _await_sites(control: ControlHttpClient, config: DictConfig, display: Display) -> None:
    """Wait until ``num_clients`` SuperNodes are connected, or (null) any.

    Raises UserError, with the names that they were registered under, where another number is when the time is up;
    RunFailed where no SuperLink answers.
    """
    wanted, seconds = config.num_clients, config.runtime.node_timeout
    end = time.monotonic() + seconds
    while True:
        try:
            nodes = control.ListNodes(ListNodesRequest()).nodes_info
        except httpx.HTTPError as error:
            raise RunFailed(f"runtime.superlink={config.runtime.superlink}: {first_line(error)}") from None
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
    before = _written(directory / "result.json")  # of a run that had ended and now goes on
    asked = heard = time.monotonic()
    while True:
        display.update()
        time.sleep(0.25)
        ended = _written(directory / "result.json") != before or (directory / "failure.json").exists()
        if superlink.process is not None and superlink.process.poll() is not None:
            raise RunFailed(f"the SuperLink ended with status {superlink.process.returncode}; see flower.log")
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
    if row.status_text != "finished:completed" or _written(directory / "result.json") == before:
        _raise_failure(directory, f"the server's process ended without a word ({row.details or row.status_text})")


def _written(file: Path) -> float | None:
    return file.stat().st_mtime if file.exists() else None


def _raise_failure(directory: Path, otherwise: str) -> None:
    file = directory / "failure.json"
    failure = json.loads(file.read_text()) if file.exists() else {"error": otherwise.splitlines()[0], "user": False}
    raise (UserError if failure["user"] else RunFailed)(failure["error"])


def _flwr(superlink: SuperLink, *arguments: str) -> dict[str, Any]:
    """Call the ``flwr`` command and return what it says in JSON."""
    done = subprocess.run(
        [_script("flwr"), *arguments],
        env=superlink.environment,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    start = done.stdout.find("{")
    try:
        return dict(json.loads(done.stdout[start:]))
    except ValueError:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise RunFailed(f"flwr {arguments[0]}: {said[-1].strip()}") from None


def _script(name: str) -> str:
    """A command that lies beside this Python, whether or not its folder is on the PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    return str(beside) if beside.exists() else name


@contextlib.contextmanager
def _superlink(config: DictConfig, directory: Path, mark: str) -> Iterator[SuperLink]:
    """A SuperLink that is up, and gone afterwards with all that it started."""
    with (
        tempfile.TemporaryDirectory(prefix="fedgh-", ignore_cleanup_errors=True) as folder,
        (directory / "flower.log").open("ab") as log,
    ):
        home, port = Path(folder), _free_port()
        environment = {
            **_environment(mark),
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": os.environ.get("FLWR_TELEMETRY_ENABLED", "0"),
            "RAY_USAGE_STATS_ENABLED": "0",
            # The ServerApp's own threads; Ray gives each client its own number.
            "OMP_NUM_THREADS": str(config.runtime.client_cpus),
        }
        address = {"address": f"127.0.0.1:{port}", "insecure": True}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "fedgh", "fedgh": address}}))
        command = [_script("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        before = os.environ.get("FLWR_HOME")
        os.environ["FLWR_HOME"] = str(home)  # where Flower's own functions, called from here, find the SuperLink
        try:
            _wait_until_up(process, port)
            yield SuperLink("fedgh", environment, process)
        finally:
            _end(process, mark)
            os.environ.pop("FLWR_HOME")
            if before is not None:
                os.environ["FLWR_HOME"] = before


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _environment(mark: str) -> dict[str, str]:
    """What every process inherits that is started for the run."""
    environment = {
        **os.environ,
        processes.MARK: mark,
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    return environment


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RunFailed(f"flower-superlink ended with status {process.returncode}; see flower.log")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=0.5).is_success:
                return
        time.sleep(0.1)
    raise RunFailed(f"flower-superlink did not answer within {START_SECONDS:g} seconds; see flower.log")


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the SuperLink and every process that carries ``mark``, Ray's daemons among them."""
    # A second Ctrl-C or SIGTERM must not leave half of them running.
    ignored = (signal.SIGINT, signal.SIGTERM) if _in_main_thread() else ()
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        processes.end_marked(mark)
        process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _stage(folder: Path) -> Path:
    """A copy of the app without the virtual environment, data and runs that lie beside it in a checkout."""
    app = folder / "app"
    app.mkdir()
    for name in APP_FILES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, app / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, app / name)
    return app
