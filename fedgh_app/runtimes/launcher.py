"""Starts one run in the runtime that its config chooses, shows it, and leaves no process behind."""

from collections.abc import Sequence
from pathlib import Path

from fedgh_app.assembly.server import Assembly
from fedgh_app.config.compose import absolute_paths, compose_config, quoted
from fedgh_app.errors import UserError
from fedgh_app.runs import resumption
from fedgh_app.runs.checkpoints import newest
from fedgh_app.runs.directory import CLIENTS
from fedgh_app.runs.history import HISTORY
from fedgh_app.runs.result import RESULT, Result
from fedgh_app.runtimes.baselines import run_centralised, run_local
from fedgh_app.runtimes.deployment import deploy
from fedgh_app.runtimes.inprocess import display_of, run_inprocess
from fedgh_app.runtimes.simulation import simulate


def launch(overrides: Sequence[str], directory: Path, *, quiet: bool = False) -> Result:
    """Run one federation (or baseline) to its end; what it came to.

    The run directory is made once the run is known to be right; it must not hold another run, but with ``resume`` the
    one that goes on. ``quiet`` shows no progress. UserError for bad input, when nothing was started; RunFailed, with
    one line that says why, where the run ended early.
    """
    directory = directory.resolve()
    overrides = [*overrides, f"run_dir={quoted(directory)}"]
    overrides += absolute_paths(compose_config(overrides))
    assembly = Assembly(compose_config(overrides))
    settings = assembly.settings
    held = any((directory / name).exists() for name in (HISTORY, RESULT, CLIENTS))
    if held and settings.resume is None:
        raise UserError(
            f"run_dir={directory}: holds a run already; expected a new or empty directory, or resume={directory}"
        )
    assembly.check()
    runtime = settings.runtime
    if settings.resume is not None:
        if runtime.name == "local":
            raise UserError("runtime=local: it is one run for each client, which cannot be resumed; expected a new run")
        newest(directory, settings.rounds)
    if runtime.name == "local":
        return run_local(assembly, overrides, directory, quiet=quiet)
    if runtime.name == "centralised":
        return run_centralised(assembly, overrides, directory, quiet=quiet)
    nodes = 0 if runtime.name == "deployment" else sum(assembly.data.clients_of().values())
    if nodes and settings.num_clients is None:
        overrides.append(f"num_clients={nodes}")  # the server then waits for all of them
    if nodes and not assembly.data.held_by_sites:
        assembly.data.deal(nodes)
    title = f"{assembly.strategy_name} on {assembly.data.name}"
    with (
        resumption.claimed(directory, overrides) as mark,
        display_of(assembly, directory, title, quiet=quiet) as display,
    ):
        if runtime.name == "inprocess":
            run_inprocess(overrides, directory, nodes, display)
        elif runtime.name == "deployment":
            deploy(settings, overrides, directory, display, mark)
        else:
            simulate(runtime, overrides, directory, nodes, display, mark)
    return Result.read(directory)
