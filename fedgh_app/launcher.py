"""Starts one run in its runtime, shows it, and leaves no process behind.

The simulation runtime is Flower's own: a private SuperLink on a free port, ``flwr run`` from a staged copy of the app,
the outcome from Flower's status and from ``result.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tomli_w
from omegaconf import DictConfig

from fedgh_app import baselines, partition, server_app, site, storage
from fedgh_app.config import ROOT, compose_config, join_overrides
from fedgh_app.federation import RunFailed
from fedgh_app.pose.errors import UserError
from fedgh_app.progress import Display

APP_FILES = ("fedgh_app", "strategies", "conf", "datasets", "pyproject.toml", "README.md", "LICENSE")
MARK = "FEDGH_RUN_MARK"  # environment variable that every process of a run inherits
START_SECONDS = 60.0
STOP_SECONDS = 10.0
STATUS_SECONDS = 3.0  # between two questions about the run's status; each is a line in the SuperLink's log


def launch(overrides: Sequence[str], directory: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Run one federation (or baseline) to its end.

    Args:
        overrides: the run's overrides.
        directory: the run directory; must not hold another run.
        quiet: no live progress.

    Returns:
        The content of ``result.json``.

    Raises:
        UserError: bad input; nothing was started.
        RunFailed: the run ended early; the message is one line that says why.
    """
    directory = directory.resolve()
    if (directory / "history.jsonl").exists():
        raise UserError(f"run_dir={directory}: holds a run already; expected a new or empty directory")
    overrides = [*overrides, f"run_dir={storage.quoted(directory)}"]
    config = compose_config(overrides)
    overrides += absolute_paths(config)
    config = compose_config(overrides)
    server_app.check(config)
    runtime = config.runtime.name
    if runtime == "local":
        return baselines.run_local(config, overrides, directory)
    if runtime == "centralised":
        return baselines.run_centralised(config, overrides, directory)
    cache = site.open_data(config)
    nodes = config.num_clients or partition.natural_size(config, cache) or config.runtime.num_supernodes
    if config.partition._target_ is not None:
        partition.partition(config, cache, nodes)
    directory.mkdir(parents=True, exist_ok=True)
    with Display(config, directory, quiet=quiet) as display:
        if runtime == "inprocess":
            baselines.run_inprocess(config, overrides, directory, nodes, display)
        else:
            _simulate(config, overrides, directory, nodes, display)
    return storage.read_json(directory / "result.json")


def absolute_paths(config: DictConfig) -> list[str]:
    """Overrides that make every path absolute: Flower's processes have working directories of their own."""
    paths = {"dataset.root": config.dataset.root, "init": config.init}
    weights = config.model.get("weights")
    if weights and Path(weights).expanduser().exists():  # else it is the name of a torchvision enum
        paths["model.weights"] = weights
    return [
        f"{key}={storage.quoted(Path(value).expanduser().resolve())}"
        for key, value in paths.items()
        if value is not None
    ]


@dataclass
class SuperLink:
    """A private SuperLink in simulation mode.

    Attributes:
        port: its one port on loopback.
        home: its FLWR_HOME, thrown away at the end.
        environment: environment for processes that talk to it.
        process: the SuperLink.
    """

    port: int
    home: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]


def _simulate(config: DictConfig, overrides: Sequence[str], directory: Path, nodes: int, display: Display) -> None:
    """Run on Flower's Ray simulation."""
    with _superlink(config, directory) as superlink:
        app = _stage(superlink.home)
        run_config = superlink.home / "run.toml"
        run_config.write_text(tomli_w.dumps({"overrides": join_overrides(overrides)}))
        cores = os.cpu_count() or 1
        federation = {
            "num-supernodes": nodes,
            "client-resources-num-cpus": config.runtime.client_cpus,
            "client-resources-num-gpus": config.runtime.client_gpus,
            "init-args-num-cpus": max(cores, config.runtime.client_cpus),
        }
        started = _flwr(
            superlink,
            "run",
            str(app),
            "fedgh",
            "--run-config",
            str(run_config),
            "--federation-config",
            " ".join(f"{key}={value}" for key, value in federation.items()),
            "--format",
            "json",
        )
        if not started.get("run-id"):
            raise RunFailed(f"flwr run did not start: {started.get('error-message') or started}")
        display.stage("starting Ray and the clients")
        try:
            _watch(superlink, str(started["run-id"]), directory, display)
        finally:
            _keep_log(superlink, str(started["run-id"]), directory / "flower.log")


def _keep_log(superlink: SuperLink, run_id: str, file: Path) -> None:
    """Append what ServerApp and clients said, which only the SuperLink has, to the run's log."""
    with contextlib.suppress(subprocess.SubprocessError), file.open("ab") as log:
        command = [_script("flwr"), "log", run_id, "fedgh", "--show"]
        subprocess.run(command, env=superlink.environment, stdout=log, stderr=log, timeout=START_SECONDS, check=False)


def _watch(superlink: SuperLink, run_id: str, directory: Path, display: Display) -> None:
    """Show progress until Flower says that the run has finished; raise if it did not complete."""
    from flwr.cli.flower_config import read_superlink_connection
    from flwr.cli.run_utils import format_runs
    from flwr.cli.utils import init_http_client_from_connection
    from flwr.common.serde import run_from_proto
    from flwr.proto.control_pb2 import ListRunsRequest

    # What `flwr ls` asks, asked from here: a new Python process every second would take time from training.
    os.environ["FLWR_HOME"] = str(superlink.home)
    with contextlib.redirect_stdout(None):
        client = init_http_client_from_connection(read_superlink_connection("fedgh"))
    try:
        asked = 0.0
        while True:
            display.update()
            time.sleep(0.25)
            ended = (directory / "result.json").exists() or (directory / "failure.json").exists()
            if superlink.process.poll() is not None:
                raise RunFailed(f"the SuperLink ended with status {superlink.process.returncode}; see flower.log")
            if not ended and time.monotonic() - asked < STATUS_SECONDS:
                continue
            asked = time.monotonic()
            answer = client.ListRuns(ListRunsRequest(run_id=int(run_id)))
            row = format_runs([run_from_proto(run) for run in answer.run_dict.values()], answer.now)[0]
            if row.status_text.startswith("finished"):
                break
        display.update()
        if row.status_text != "finished:completed" or not (directory / "result.json").exists():
            _raise_failure(directory, f"{row.status_text}: {row.details or 'no details'}")
    finally:
        client.close()


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
def _superlink(config: DictConfig, directory: Path) -> Iterator[SuperLink]:
    """A SuperLink that is up, and gone afterwards with all that it started."""
    home = Path(tempfile.mkdtemp(prefix="fedgh-"))
    mark = secrets.token_hex(8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        MARK: mark,
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": os.environ.get("FLWR_TELEMETRY_ENABLED", "0"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}",
        # The ServerApp's own threads; Ray gives each client its own number.
        "OMP_NUM_THREADS": str(config.runtime.client_cpus),
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    (home / "config.toml").write_text(
        tomli_w.dumps({"superlink": {"default": "fedgh", "fedgh": {"address": f"127.0.0.1:{port}", "insecure": True}}})
    )
    log = (directory / "flower.log").open("ab")
    command = [_script("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is ours to pass on
    )
    previous = {name: os.environ.get(name) for name in ("FLWR_HOME",)}
    try:
        _wait_until_up(process, port)
        yield SuperLink(port, home, environment, process)
    finally:
        _end(process, mark)
        log.close()
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(home, ignore_errors=True)


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> None:
    import httpx

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
    # A second Ctrl-C must not leave half of them running.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if _in_main_thread() else None
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        left = list(_marked(mark))
        for survivor in left:
            with contextlib.suppress(psutil.Error):
                survivor.terminate()
        _, alive = psutil.wait_procs(left, timeout=STOP_SECONDS / 2)
        for survivor in [*alive, *_marked(mark)]:
            with contextlib.suppress(psutil.Error):
                survivor.kill()
        process.wait()
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _marked(mark: str) -> Iterator[psutil.Process]:
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if candidate.environ().get(MARK) == mark:
                yield candidate


def _stage(home: Path) -> Path:
    """A copy of the app without the virtual environment, data and runs that lie beside it in a checkout."""
    app = home / "app"
    app.mkdir()
    for name in APP_FILES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, app / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, app / name)
    return app
