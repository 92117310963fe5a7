"""One ``flwr run`` on a SuperLink, from its start to its end: what simulation and deployment have in common.

It starts from a staged copy of the app; how it went Flower's status and ``result.json`` tell.
"""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import tomli_w

from fedgh_app.config.compose import join_overrides
from fedgh_app.errors import RunFailed, UserError, first_line
from fedgh_app.flower import ControlHttpClient, ListRunsRequest, StopRunRequest, format_runs, run_from_proto
from fedgh_app.resources import APP_FILES, SHIPPED
from fedgh_app.runs.directory import LOG, STOP
from fedgh_app.runs.records import FAILURE, Failure
from fedgh_app.runs.result import RESULT
from fedgh_app.runtimes.progress import Display
from fedgh_app.runtimes.superlink import START_SECONDS, STOP_SECONDS, SuperLink, control_of, flwr, script

STATUS_SECONDS = 3.0  # between two questions about the run's status; each is a line in the SuperLink's log
SILENCE_SECONDS = 60.0


def run_on(
    superlink: SuperLink, overrides: Sequence[str], directory: Path, display: Display, waiting: str, *options: str
) -> None:
    """One `flwr run`, from its start to its end."""
    with tempfile.TemporaryDirectory(prefix="fedgh-") as folder:
        app = stage(Path(folder))
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


def stage(folder: Path) -> Path:
    """A copy of the app without what lies beside it: a checkout's data and runs, or other installed packages."""
    app = folder / "app"
    app.mkdir()
    for name, source in APP_FILES.items():
        if source.is_dir():
            shutil.copytree(source, app / name, ignore=shutil.ignore_patterns("__pycache__", SHIPPED.name))
        elif source.exists():
            shutil.copy2(source, app / name)
    return app


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
        if not (directory / FAILURE).exists():
            said = str(row.details or row.status_text).splitlines()[0]
            raise RunFailed(f"the server's process ended without a word ({said})")
        failure = Failure.read(directory)
        raise (UserError if failure.user else RunFailed)(failure.error)


def _written(file: Path) -> float | None:
    return file.stat().st_mtime if file.exists() else None
