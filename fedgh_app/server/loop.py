"""The round loop of one federation.

The loop calls the strategy's four methods and, after every round, each callback. Flower's own ``strategy.start`` has no
hook between rounds and waits without end for missing nodes.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from logging import ERROR

from flwr.common.logger import log
from flwr.serverapp import Grid
from safetensors import SafetensorError

from fedgh_app.errors import RunFailed, UserError, first_line
from fedgh_app.grids.reply_checks import finite
from fedgh_app.grids.screening import ScreeningGrid
from fedgh_app.runs import storage
from fedgh_app.runs.directory import STOP
from fedgh_app.runs.history import HISTORY, Round
from fedgh_app.server.callback import Callback
from fedgh_app.server.evaluation import evaluate_clients
from fedgh_app.server.exchange import Exchange
from fedgh_app.server.federation import Federation
from fedgh_app.server.persistence import result_of, take_up
from fedgh_app.server.registration import register
from fedgh_app.vision.threads import limit_threads, usable_cores


def federate(
    federation: Federation, grid: Grid, callbacks: Sequence[Callback], watch: Callable[[], None] = lambda: None
) -> None:
    """Run all rounds of a federation over ``grid``, or with ``resume`` those after its newest checkpoint, and write
    the run directory. ``watch`` is called after every round, for whoever shows progress in this process.

    Raises:
        RunFailed: too few good replies.
        UserError: clients that do not fit the config, or not the checkpoint.
    """
    settings, directory = federation.settings, federation.directory
    if settings.resume is None and (directory / HISTORY).exists():
        raise UserError(f"run_dir={directory}: holds a run already; expected a new or empty directory")
    limit_threads(settings.runtime.client_cpus)
    federation.started = time.perf_counter()
    storage.clear_drafts(directory)
    screen = _screened(federation, grid)
    register(federation, screen)
    first = 0
    if settings.resume is not None:
        first = take_up(federation) + 1
        screen.rejected = [item for earlier in federation.history for item in earlier.rejected]
    storage.save_config(directory, federation.values)
    exchange = Exchange(federation, screen)
    failure: str | None = "stopped"
    try:
        for server_round in range(first, settings.rounds + 1):
            _run_round(exchange, Round(round=server_round))
            _after_round(federation, callbacks)
            watch()
        result = result_of(federation)
        failure = None
    except Exception as error:
        failure = first_line(error)
        raise
    finally:
        _close(federation, callbacks, failure)
    # The last file: a run that was killed before it goes on, if only to write what is written at the end.
    result.write(directory)


def _screened(federation: Federation, grid: Grid) -> ScreeningGrid:
    runtime = federation.settings.runtime
    simulated = runtime.name == "simulation"
    # Enough for each process of the simulation to have its next client ready.
    at_once = 4 * max(1, usable_cores() // (runtime.client_cpus or 1)) if simulated else None
    return ScreeningGrid(grid, stop_file=federation.directory / STOP, simulated=simulated, at_once=at_once)


def _run_round(exchange: Exchange, current: Round) -> None:
    """One round, evaluation by clients included; round 0 is that alone."""
    federation = exchange.federation
    exchange.begin(current)
    if current.round and federation.rounds_started is None:
        federation.rounds_started = time.perf_counter()
    with current.timed("total"):
        if current.round:
            with federation.cohorts.restored_on_failure():
                federation.topology.run_round(exchange)
                check_finite(federation, current)
        # Before training, what the clients measure is of interest where nobody else can.
        if current.round or not federation.is_central:
            evaluate_clients(exchange)
    for part in federation.parts.values():
        part.note(current)
    federation.history.append(current)


def check_finite(federation: Federation, current: Round) -> None:
    """Raise RunFailed where the round made NaN or infinity of finite updates."""
    models = list(federation.cohorts.models.values())
    for part in federation.parts.values():
        models += part.message_records().values()
    for arrays in {id(model): model for model in models}.values():
        if key := finite(arrays):
            raise RunFailed(
                f"round {current.round}: aggregation made NaN or infinity of finite updates, in {key}; "
                "the model of the round before is kept"
            )


def _after_round(federation: Federation, callbacks: Iterable[Callback]) -> None:
    current = federation.history[-1]
    try:
        for callback in callbacks:
            callback.after_round(federation, current)
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"round {current.round}: {storage.unwritten(error)}") from error


def _close(federation: Federation, callbacks: Iterable[Callback], failure: str | None) -> None:
    for callback in callbacks:
        # A picture that cannot be drawn must cost neither the run its result nor the other callbacks their end.
        try:
            callback.close(federation, failure)
        except Exception as error:
            log(ERROR, "%s failed at the end of the run", type(callback).__name__, exc_info=error)
