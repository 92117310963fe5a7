"""The SuperLink that a run goes through: a private one on a free port, or one that somebody else runs."""

import contextlib
import json
import os
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import tomli_w
import typer

from fedgh_app.errors import RunFailed, UserError
from fedgh_app.flower import FLOWER_CONFIG_FILE, ControlHttpClient, control_client, get_flwr_home, superlink_connection
from fedgh_app.runs import processes
from fedgh_app.runs.directory import LOG

START_SECONDS = 60.0
STOP_SECONDS = 15.0


@dataclass
class SuperLink:
    """The SuperLink of a run."""

    connection: str  # its name in Flower's configuration
    environment: dict[str, str]  # of processes that talk to it, in which they find that configuration
    process: subprocess.Popen[bytes] | None = None  # None for one that somebody else runs


@contextlib.contextmanager
def private_superlink(threads: int, directory: Path, mark: str) -> Iterator[SuperLink]:
    """A SuperLink that is up, and gone afterwards with all that it started."""
    with (
        tempfile.TemporaryDirectory(prefix="fedgh-", ignore_cleanup_errors=True) as folder,
        (directory / LOG).open("ab") as log,
    ):
        home, port = Path(folder), free_port()
        environment = {
            **environment_of(mark),
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": os.environ.get("FLWR_TELEMETRY_ENABLED", "0"),
            "RAY_USAGE_STATS_ENABLED": "0",
            # The ServerApp's own threads; Ray gives each client its own number.
            "OMP_NUM_THREADS": str(threads),
        }
        address = {"address": f"127.0.0.1:{port}", "insecure": True}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "fedgh", "fedgh": address}}))
        command = [script("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
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
            wait_until_up(process, port)
            yield SuperLink("fedgh", environment, process)
        finally:
            processes.end(process, mark, STOP_SECONDS)
            os.environ.pop("FLWR_HOME")
            if before is not None:
                os.environ["FLWR_HOME"] = before


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment_of(mark: str) -> dict[str, str]:
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


def wait_until_up(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a SuperLink answers; RunFailed where it ended, or does not within START_SECONDS."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RunFailed(f"flower-superlink ended with status {process.returncode}; see {LOG}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=0.5).is_success:
                return
        time.sleep(0.1)
    raise RunFailed(f"flower-superlink did not answer within {START_SECONDS:g} seconds; see {LOG}")


@contextlib.contextmanager
def control_of(superlink: SuperLink) -> Iterator[ControlHttpClient]:
    """What `flwr ls` and `flwr stop` ask through: a new Python process every second would take time from training.

    Raises UserError where Flower's configuration has no such connection.
    """
    name = superlink.connection
    try:
        with contextlib.redirect_stdout(None):
            connection = superlink_connection(name)
            if not connection.address or connection.address.startswith(":"):
                raise click.ClickException("it names Flower's own local SuperLink, which only simulates")
            client = control_client(connection)
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


def flwr(superlink: SuperLink, *arguments: str) -> dict[str, Any]:
    """Call the ``flwr`` command and return what it says in JSON."""
    done = subprocess.run(
        [script("flwr"), *arguments], env=superlink.environment, capture_output=True, text=True, timeout=START_SECONDS
    )
    start = done.stdout.find("{")
    try:
        return dict(json.loads(done.stdout[start:]))
    except ValueError:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise RunFailed(f"flwr {arguments[0]}: {said[-1].strip()}") from None


def script(name: str) -> str:
    """A command that lies beside this Python, whether or not its folder is on the PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    return str(beside) if beside.exists() else name
