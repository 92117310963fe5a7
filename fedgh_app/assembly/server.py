"""The server's side of a run, from its config. What is checked before a run starts is this same assembly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord
from omegaconf import DictConfig, OmegaConf
from torch.nn import Parameter
from torch.optim import Optimizer

from fedgh_app.assembly import client
from fedgh_app.callbacks.usual import usual_callbacks
from fedgh_app.config.instantiation import instantiate
from fedgh_app.config.settings import Settings
from fedgh_app.data import site
from fedgh_app.errors import UserError, first_line
from fedgh_app.server.federation import Callback, Federation
from fedgh_app.server.modes import Mode
from fedgh_app.server.parts.distillation import ServerDistillation
from fedgh_app.server.parts.outliers import Outliers
from fedgh_app.server.parts.part import Part
from fedgh_app.server.parts.privacy import Privacy
from fedgh_app.server.parts.server_optimizer import ServerOptimizerPart
from fedgh_app.server.public_images import PublicImages
from fedgh_app.server.threads import server_threads
from fedgh_app.server.topologies import EdgeCloud, Finch, Flat, Topology
from strategies.server_optimizer import ServerOptimizer


def check(config: DictConfig) -> None:
    """Build every part of a run that needs no data once, so that a wrong argument is told before any process starts.

    Raises UserError.
    """
    federation(config, Path())
    client.check(config, client.spec(config))


def federation(config: DictConfig, directory: Path) -> Federation:
    """All that the server knows of a run before its clients say who they are.

    Args:
        config: the composed config.
        directory: the run directory; nothing is read or written there yet.

    Raises:
        UserError: a part refuses its arguments, or ``init`` is another model.
    """
    settings, spec = Settings.of(config), client.spec(config)
    model, state = client.build_model(config, spec), client.initial_state(config, spec)
    shared = client.shared_keys(config, model)
    client.optimizer(config)(list(model.parameters()), 1.0)
    schedule, mode = instantiate(config.schedule, "schedule"), instantiate(config.mode, "mode")
    strategy = instantiate(config.strategy, "strategy")
    edges = config.topology.name == "edge_cloud"
    made = Federation(
        settings=settings,
        values=_plain(config),
        directory=directory,
        task=client.task(config),
        spec=spec,
        headline=site.headline(config),
        network=client.network(config, spec),
        initial=ArrayRecord({key: Array(state[key].numpy()) for key in shared}),
        keeps_local=len(shared) < len(state),
        any_head=lambda: client.any_head(config, spec),
        strategy=strategy,
        client_strategy=instantiate(config.topology.edge_strategy, "strategy") if edges else strategy,
        mode=mode,
        topology=_topology(config, mode),
        selection=instantiate(config.selection, "selection"),
        parts=_parts(config, mode, list(model.parameters())),
        learning_rate=float(config.optimizer.lr),
        schedule=lambda server_round: schedule(server_round, settings.rounds),
    )
    if settings.runtime.name == "deployment":
        _check_server_images(config, made)
    return made


def callbacks(config: DictConfig) -> list[Callback]:
    """What is done after every round, in its order."""
    return list(usual_callbacks(config))


def _topology(config: DictConfig, mode: Mode) -> Topology:
    if config.clustering.name == "finch":
        return Finch(_public_images(config, "clustering", mode))
    node = config.topology
    if node.name == "edge_cloud":
        return EdgeCloud(node.edge_rounds, node.edges, _plain(node)["members"])
    return Flat()


def _parts(config: DictConfig, mode: Mode, parameters: list[Parameter]) -> dict[str, Part]:
    """What the other axes add to a round, in the order in which it calls them."""
    # With central noise no client's update may decide over another's; clipping bounds each anyway.
    parts: dict[str, Part] = {
        "outliers": Outliers(math.inf if config.privacy.name == "central" else config.outlier_factor)
    }
    if "server_part" in config.objective:
        parts["objective"] = instantiate(config.objective.server_part, "server_part")
    if config.server_optimizer._target_ is not None:
        optimizer = _server_optimizer(config)
        optimizer(parameters)
        parts["server_optimizer"] = ServerOptimizerPart(ServerOptimizer(optimizer))
    if config.distillation.name == "server":
        node = config.distillation
        parts["distillation"] = ServerDistillation(
            _public_images(config, "distillation", mode),
            client.optimizer(config),
            node.every,
            node.output,
            node.learning_rate_factor,
            client.task(config).outputs,
        )
    if config.privacy.name != "none":
        parts["privacy"] = Privacy(**_plain(config.privacy))
    return parts


def _public_images(config: DictConfig, group: str, mode: Mode) -> PublicImages:
    """The images of a group's ``public`` data set; opened when the federation begins."""
    node, key, spec = config[group], f"{group}.public", client.spec(config)
    return PublicImages(
        open_examples=lambda: client.open_public(config, node.public, key),
        count=node.images,
        seed=config.seed,
        key=key,
        batch_size=config.batch_size,
        build_model=lambda: client.build_model(config, spec),
        device=client.device(config),
        batch_statistics=client.batch_statistics(config),
        threads=functools.partial(server_threads, Settings.of(config).runtime, mode.clients_rest),
    )


def _server_optimizer(config: DictConfig) -> Callable[[Iterable[Parameter]], Optimizer]:
    """The configured server optimizer, which still wants its parameters; refuses its arguments with a UserError."""
    made = instantiate(config.server_optimizer, "server_optimizer")

    def build(parameters: Iterable[Parameter]) -> Optimizer:
        try:
            optimizer: Optimizer = made(parameters)
        except Exception as error:
            raise UserError(f"server_optimizer: {first_line(error)}") from None
        return optimizer

    return build


def _check_server_images(config: DictConfig, made: Federation) -> None:
    """Refuse (UserError) the server's own evaluation where the server has no images."""
    if made.settings.evaluate.central_every and made.is_central and not Path(config.dataset.root).expanduser().is_dir():
        raise UserError(
            f"dataset.root={config.dataset.root}: no such directory on the server; expected the images of its own "
            "evaluation, or evaluate.central_every=0 to have only the sites evaluate"
        )


def _plain(node: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(node)  # type: ignore[return-value]  # a mapping's
