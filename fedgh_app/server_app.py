"""The ServerApp: the round loop of one federation.

The loop calls the strategy's four methods and, after every round, each callback. Flower's own ``strategy.start`` has no
hook between rounds and waits without end for missing nodes.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import ERROR, INFO
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from omegaconf import DictConfig
from safetensors import SafetensorError

from fedgh_app.callbacks.callback import Callback, callbacks_of
from fedgh_app.client.teacher import distillation_of, guide_of
from fedgh_app.config.combinations import is_central
from fedgh_app.config.compose import compose_config, run_name, split_overrides
from fedgh_app.config.instantiation import build_optimizer, instantiate
from fedgh_app.data import site
from fedgh_app.errors import RunFailed, UserError, few, first_line
from fedgh_app.grids.packing import PackingGrid
from fedgh_app.grids.replies import CLAIM, Expected, finite, one_line
from fedgh_app.grids.screening import Rejected, ScreeningGrid
from fedgh_app.plots.holdings import holdings
from fedgh_app.pose.data.records import DatasetSpec
from fedgh_app.pose.evaluation.tally import Count, Tally
from fedgh_app.runs import processes, storage
from fedgh_app.runs.directory import PLOTS, STOP
from fedgh_app.runs.history import HISTORY, Round
from fedgh_app.runs.records import FAILURE, Failure
from fedgh_app.runs.resumption import served
from fedgh_app.server import checkpoints, privacy
from fedgh_app.server.client_evaluation import evaluate_clients
from fedgh_app.server.distillation import PublicImages, ServerDistillation
from fedgh_app.server.federation import ClientInfo, Cohorts, Federation, Topology
from fedgh_app.server.modes import CONTROL, OUTLIERS, PRIVACY
from fedgh_app.server.outliers import Outliers
from fedgh_app.server.result import result_of
from fedgh_app.server.topologies import EdgeCloud, Finch, Flat, edges_of
from fedgh_app.vision.cores import usable_cores
from strategies.scaffold import ControlVariate
from strategies.server_optimizer import ServerOptimizer

app = ServerApp()

NODE_WAIT_SECONDS = 60.0  # where the runtime does not say
FIRST_ANSWER_SECONDS = 120.0  # at least: before it, clients' processes start and import PyTorch


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation on Flower's engine."""
    config = compose_config(split_overrides(str(context.run_config.get("overrides", ""))))
    directory = run_directory(config)
    with served(directory), failing_into(directory):
        if config.runtime.name == "deployment":
            check_server_images(config)
            grid = PackingGrid(grid) if config.runtime.packed else grid
        patience = config.runtime.get("node_timeout")
        try:
            # The simulation engine registers its nodes after it has started this thread.
            nodes = wait_for_nodes(grid, config.num_clients, patience, directory / STOP)
            deal(config, directory, len(nodes))
            federate(config, grid, directory)
        finally:
            if config.runtime.name == "simulation":
                processes.end_ray_calls()


def deal(config: DictConfig, directory: Path, num_clients: int) -> None:
    """Make the partition that the clients will read, and draw it; nothing where sites hold their own data."""
    if config.partition._target_ is None:
        return
    dealt = site.deal(config, num_clients)
    (directory / PLOTS).mkdir(parents=True, exist_ok=True)
    holdings(dealt, directory / PLOTS / "partition.png", str(config.dataset.spec))


def run_directory(config: DictConfig) -> Path:
    """The directory of this run, made if need be; absolute."""
    directory = Path(config.run_dir or Path("runs") / run_name(config)).expanduser().resolve()
    directory.mkdir(parents=True, exist_ok=True)
    log(INFO, "Run directory: %s", directory)
    return directory


@contextmanager
def failing_into(directory: Path) -> Iterator[None]:
    """Leave ``failure.json`` with one line where the block raises, for whoever started the run."""
    (directory / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            line = "stopped"
        # A disk that is full takes not even this; whoever started the run then has the engine's word.
        with contextlib.suppress(OSError):
            Failure(error=line, kind=type(error).__name__, user=isinstance(error, UserError)).write(directory)
        (directory / STOP).unlink(missing_ok=True)  # it has been heeded; a run that is resumed is to go on
        raise


def wait_for_nodes(
    grid: Grid, expected: int | None, timeout: float | None = None, stop_file: Path | None = None
) -> list[int]:
    """Node ids, once ``expected`` nodes are connected, or (None) once their number stands still.

    Args:
        grid: whose nodes.
        expected: how many.
        timeout: seconds to wait for all of them, each of which comes when it does; None where they come together, so
            that who is not there when their number stands still does not come.
        stop_file: once this file exists, the wait ends with `RunFailed`.

    Raises UserError where another number is connected when the wait ends.
    """
    end = time.monotonic() + (timeout or NODE_WAIT_SECONDS)
    nodes: list[int] = []
    while time.monotonic() < end:
        if stop_file is not None and stop_file.exists():
            raise RunFailed("stopped")
        found = sorted(grid.get_node_ids())
        still, nodes = bool(found) and found == nodes, found
        if len(found) == expected or (still and expected is None):
            return found
        if still and (timeout is None or len(found) > (expected or 0)):
            break
        time.sleep(0.5)
    if expected is None:
        raise RunFailed(f"no node connected within {timeout or NODE_WAIT_SECONDS:g} seconds")
    if timeout is None:
        hint = f'expected {expected}: flwr run . --federation-config "num-supernodes={expected}"'
    else:
        names = sorted(node.name or str(node.node_id) for node in grid.get_nodes())
        hint = (
            f"expected {expected} within runtime.node_timeout={timeout:g} seconds, found {', '.join(names) or 'none'}"
        )
    raise UserError(f"num_clients={expected}: {len(nodes)} nodes are connected; {hint}")


def check_server_images(config: DictConfig) -> None:
    """Refuse (UserError) the server's own evaluation where the server has no images."""
    if config.evaluate.central_every and is_central(config) and not Path(config.dataset.root).expanduser().is_dir():
        raise UserError(
            f"dataset.root={config.dataset.root}: no such directory on the server; expected the images of its own "
            "evaluation, or evaluate.central_every=0 to have only the sites evaluate"
        )


def first_spec(config: DictConfig) -> DatasetSpec:
    """The data set of a run; of several, the first."""
    return next(iter(site.specs(config).values()))


def check(config: DictConfig) -> None:
    """Build every part that needs no data once, so that a wrong argument is told before any process starts.

    Raises UserError.
    """
    spec = first_spec(config)
    for part in ("strategy", "loss", "augmentation", "schedule", "objective", "sharing", "selection", "mode"):
        instantiate(config[part], part)
    if config.distillation.name == "server":
        node = config.distillation
        ServerDistillation(None, node.every, node.output, node.learning_rate_factor)
    if config.topology.name == "edge_cloud":
        instantiate(config.topology.edge_strategy, "strategy")
    distillation_of(config)
    callbacks_of(config)
    for where in ("central", "local"):
        privacy.mechanism(config, where)
    if config.teacher.get("run") is not None:
        guide_of(config, spec)
    site.initial_state(config, spec)
    parameters = list(site.build_model(config, spec).parameters())
    build_optimizer(config, parameters)
    if config.server_optimizer._target_ is not None:
        server_optimizer(config)(parameters)


def server_optimizer(config: DictConfig) -> Callable[[Iterable[Any]], Any]:
    """The configured server optimizer, which still wants its parameters; refuses its arguments with a UserError."""
    made = instantiate(config.server_optimizer, "server_optimizer")

    def build(parameters: Iterable[Any]) -> Any:
        try:
            return made(parameters)
        except Exception as error:
            raise UserError(f"server_optimizer: {first_line(error)}") from None

    return build


def federate(
    config: DictConfig,
    grid: Grid,
    directory: Path,
    callbacks: Sequence[Callback] | None = None,
    watch: Callable[[], None] = lambda: None,
) -> Federation:
    """Run all rounds of one federation over ``grid``, or with ``resume`` those after its newest checkpoint, and write
    the run directory.

    Args:
        config: the composed config.
        grid: Flower's, or `fedgh_app.grids.inprocess.InProcessGrid`.
        directory: the run directory.
        callbacks: None for those of the config.
        watch: called after every round, for whoever shows progress in this process.

    Returns:
        The federation after its last round.

    Raises:
        RunFailed: too few good replies.
        UserError: clients that do not fit the config, or not the checkpoint.
    """
    if config.resume is None and (directory / HISTORY).exists():
        raise UserError(f"run_dir={directory}: holds a run already; expected a new or empty directory")
    site.limit_threads(config.runtime.client_cpus)
    spec = first_spec(config)
    started = time.perf_counter()
    storage.clear_drafts(directory)
    simulated = config.runtime.name == "simulation"
    # Enough for each process of the simulation to have its next client ready.
    at_once = 4 * max(1, usable_cores() // config.runtime.client_cpus) if simulated else None
    screen = ScreeningGrid(grid, stop_file=directory / STOP, simulated=simulated, at_once=at_once)
    clients = query(screen, config, spec)
    screen.expected = functools.partial(expected_reply, clients)
    screen.knows = functools.partial(known_client, clients)
    run, topology = assemble(config, directory, spec, clients, screen)
    run.started = started
    first = 0
    if config.resume is not None:
        first = checkpoints.take_up(run) + 1
        screen.rejected = [Rejected(**dict(item)) for this in run.history for item in this.rejected]
    storage.save_config(directory, config)
    hooks = callbacks_of(config) if callbacks is None else list(callbacks)
    failure: str | None = "stopped"
    try:
        for server_round in range(first, config.rounds + 1):
            if server_round and run.rounds_started is None:
                run.rounds_started = time.perf_counter()
            this = Round(round=server_round)
            with this.timed("total"):
                if server_round:
                    screen.round = server_round
                    with run.cohorts.restored_on_failure():
                        topology.run_round(run, screen, this)
                        check_finite(run, this)
                # Before training, what the clients find is of interest where nobody else can look.
                if server_round or not run.is_central:
                    evaluate_clients(run, screen, this)
            if PRIVACY in run.axes:
                this.privacy = run.axes[PRIVACY].spent()
            run.history.append(this)
            for hook in hooks:
                try:
                    hook.after_round(run, this)
                except (OSError, SafetensorError) as error:
                    raise RunFailed(f"round {this.round}: {storage.unwritten(error)}") from error
            watch()
        result = result_of(run)
        failure = None
    except Exception as error:
        failure = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise
    finally:
        for hook in hooks:
            # A picture that cannot be drawn must cost neither the run its result nor the other hooks their end.
            try:
                hook.close(run, failure)
            except Exception as error:
                log(ERROR, "%s failed at the end of the run", type(hook).__name__, exc_info=error)
    # The last file: a run that was killed before it goes on, if only to write what is written at the end.
    result.write(directory)
    return run


def check_finite(run: Federation, this: Round) -> None:
    """Raise RunFailed where the round made NaN or infinity of finite updates."""
    models = list(run.cohorts.models.values())
    if CONTROL in run.axes:
        models.append(run.axes[CONTROL].arrays)
    for arrays in {id(model): model for model in models}.values():
        if key := finite(arrays):
            raise RunFailed(
                f"round {this.round}: aggregation made NaN or infinity of finite updates, in {key}; "
                "the model of the round before is kept"
            )


def assemble(
    config: DictConfig, directory: Path, spec: DatasetSpec, clients: dict[str, ClientInfo], grid: ScreeningGrid
) -> tuple[Federation, Topology]:
    """The server's parts of a run, from the config's groups."""
    initial = site.initial_state(config, spec)
    local = set(instantiate(config.sharing, "sharing").local_keys(site.build_model(config, spec)))
    shared = ArrayRecord({key: Array(tensor.numpy()) for key, tensor in initial.items() if key not in local})
    strategy = instantiate(config.strategy, "strategy")
    strategy.client_names = grid.client_names  # the table itself: a node may come back under another id
    run = Federation(
        config,
        directory,
        spec,
        clients,
        strategy,
        client_strategy=strategy,
        cohorts=Cohorts(clients, shared),
        mode=instantiate(config.mode, "mode"),
        id=uuid.uuid4().hex,
    )
    run.axes["selection"] = instantiate(config.selection, "selection")
    # With central noise no client's update may decide over another's; clipping bounds each anyway.
    run.axes[OUTLIERS] = Outliers(math.inf if config.privacy.name == "central" else config.outlier_factor)
    if config.server_optimizer._target_ is not None:
        run.axes["server_optimizer"] = ServerOptimizer(server_optimizer(config))
    if instantiate(config.objective, "objective").needs_control:
        run.axes[CONTROL] = ControlVariate(shared, len(clients))
    if config.distillation.name == "server":
        node = config.distillation
        images = PublicImages(config, node.public, node.images, "distillation.public")
        run.axes["distillation"] = ServerDistillation(images, node.every, node.output, node.learning_rate_factor)
    if config.privacy.name != "none":
        privacy.check_shared(shared)
        run.axes[PRIVACY] = privacy.Account(config, directory)
    if (noise := privacy.mechanism(config, "central")) is not None:
        strategy.mechanism, strategy.expected = noise, run.axes["selection"].size(len(clients))
    topology: Topology = Flat()
    if config.clustering.name == "finch":
        node = config.clustering
        topology = run.axes["clustering"] = Finch(PublicImages(config, node.public, node.images, "clustering.public"))
    elif config.topology.name == "edge_cloud":
        edges = edges_of(list(clients), config.topology.edges, config.topology.members)
        topology = EdgeCloud(config.topology.edge_rounds, edges)
        run.client_strategy = instantiate(config.topology.edge_strategy, "strategy")
        run.client_strategy.client_names = grid.client_names
    return run, topology


def expected_reply(clients: Mapping[str, ClientInfo], client: str, asked: Message) -> Expected:
    """What a client's reply must hold, beside what it was asked for."""
    info, kind = clients[client], asked.metadata.message_type
    if kind == MessageType.TRAIN:
        return Expected(frozenset({"num-examples", "loss", "steps", "seconds"}), CLAIM * info.examples)
    counts = Tally({name: Count() for name in info.keypoints}).as_scalars()
    config = next(iter(asked.content.config_records.values()), ConfigRecord())
    declared = info.examples if config.get("split") == "train" else info.test_examples
    return Expected(frozenset({"num-examples", "loss", "loss-terms", *counts}), CLAIM * declared)


def query(grid: ScreeningGrid, config: DictConfig, spec: DatasetSpec) -> dict[str, ClientInfo]:
    """Ask every node once who it is, and tell the grid their names.

    Raises UserError where two clients share a name or a client has other keypoints; RunFailed where one cannot answer.
    """
    # Who cannot say its own name goes by the one that it was registered under.
    registered = {str(node.node_id): node.name for node in grid.get_nodes() if node.name}
    messages = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in sorted(grid.get_node_ids())]
    answers = grid.answers(messages, timeout=max(config.round_timeout, FIRST_ANSWER_SECONDS))
    if grid.rejected:
        names = [registered.get(item.client, item.client) for item in grid.rejected]
        said = [f"client {name}: {item.reason}" for name, item in zip(names, grid.rejected, strict=True)]
        reasons = few(sorted(said), "; ")
        raise UserError(f"{len(grid.rejected)} of {len(messages)} clients cannot take part: {reasons}")
    clients: dict[str, ClientInfo] = {}
    for asked, reply in answers:
        info = described(reply)
        if info.name in clients:
            raise UserError(
                f"client name {info.name!r} is used by two nodes; expected a different `name` in each node config"
            )
        if info.keypoints != spec.keypoints and not _fits_any_keypoints(config, spec):
            raise UserError(
                f"client {info.name}: keypoints {','.join(info.keypoints)}; expected {','.join(spec.keypoints)}, "
                "or sharing=fedpav, which leaves each client its own head"
            )
        clients[info.name] = info
        grid.client_names[asked.metadata.dst_node_id] = info.name
    return dict(sorted(clients.items()))


def described(reply: Message) -> ClientInfo:
    """What a client says of itself in a good reply to a query."""
    said: Any = next(iter(reply.content.config_records.values()))
    keypoints = tuple(said["keypoints"].split(","))
    return ClientInfo(
        said["name"], one_line(said["label"]), said["num-examples"], said["num-test"], keypoints, float(said["speed"])
    )


def known_client(clients: Mapping[str, ClientInfo], reply: Message) -> str | None:
    """Name of the client of the run that describes itself in a good reply to a query; None where it is none of them."""
    info = described(reply)
    known = clients.get(info.name)
    return info.name if known is not None and known.keypoints == info.keypoints else None


def _fits_any_keypoints(config: DictConfig, spec: DatasetSpec) -> bool:
    """Whether what is shared of the model is the same for any number of keypoints."""
    shapes = []
    for count in (len(spec.keypoints), len(spec.keypoints) + 1):
        model = instantiate(config.model, "model", num_keypoints=count)
        local = set(instantiate(config.sharing, "sharing").local_keys(model))
        shapes.append({key: tensor.shape for key, tensor in model.state_dict().items() if key not in local})
    return shapes[0] == shapes[1]
