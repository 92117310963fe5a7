"""The parts of a run that the server is made of."""

import functools
import math
from pathlib import Path

from flwr.app import Array, ArrayRecord
from omegaconf import DictConfig
from torch import nn
from torch.nn import Parameter

from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.config.choices import plain_values
from fedgh_app.config.instantiation import instantiate, refusing
from fedgh_app.errors import UserError
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation, server_threads
from fedgh_app.server.modes import Mode
from fedgh_app.server.parts.distillation import ServerDistillation
from fedgh_app.server.parts.outliers import Outliers
from fedgh_app.server.parts.part import Part
from fedgh_app.server.parts.privacy import Privacy
from fedgh_app.server.parts.server_optimizer import ServerOptimizerPart
from fedgh_app.server.public_images import PublicImages
from fedgh_app.server.topologies import EdgeCloud, Finch, Flat, Topology
from fedgh_app.task import Spec
from strategies.server_optimizer import ServerOptimizer


class Assembly(ClientAssembly):
    """Every part of a run. What is checked before a run starts is this same assembly."""

    def check(self) -> None:
        """Build every part that needs no data, so that a wrong argument is told before any process starts."""
        super().check()
        self.federation(Path())
        _ = self.callbacks

    def federation(self, directory: Path) -> Federation:
        """All that the server knows before its clients say who they are; UserError where a part refuses its arguments.

        Nothing is read or written in ``directory`` yet.
        """
        settings, spec = self.settings, self.data.first.spec
        model, state = self.build_model(spec), self.initial_state(spec)
        local = set(self.sharing.local_keys(model))
        strategy = instantiate(self.config.strategy, "strategy")
        edges = self.config.topology.name == "edge_cloud"
        federation = Federation(
            settings=settings,
            values=self.values,
            directory=directory,
            task=self.task,
            data=self.data,
            spec=spec,
            network={**self.values["model"], **self.task.model_arguments(spec)},
            initial=ArrayRecord({key: Array(state[key].numpy()) for key in state if key not in local}),
            keeps_local=bool(local),
            any_head=functools.partial(self.any_head, spec),
            learner=lambda: self.learner(spec, self.build_model(spec)),
            strategy=strategy,
            client_strategy=instantiate(self.config.topology.edge_strategy, "strategy") if edges else strategy,
            mode=self.mode,
            topology=self.topology,
            selection=instantiate(self.config.selection, "selection"),
            parts=self.parts(list(model.parameters())),
            learning_rate=self.learning_rate,
            schedule=lambda server_round: self.schedule(server_round, settings.rounds),
        )
        tests_itself = settings.evaluate.central_every and federation.is_central
        if settings.runtime.name == "deployment" and tests_itself and not (root := self.data.only.root).is_dir():
            raise UserError(
                f"dataset.root={root}: no such directory on the server; expected the images of its own "
                "evaluation, or evaluate.central_every=0 to have only the sites evaluate"
            )
        return federation

    @functools.cached_property
    def callbacks(self) -> list[Callback]:
        """What is done beside the rounds, in its order."""
        return [instantiate(node, "callbacks") for node in self.config.callbacks.values()]

    @property
    def strategy_name(self) -> str:
        """What the strategy is called."""
        return str(self.config.strategy._target_).rpartition(".")[2]

    @functools.cached_property
    def mode(self) -> Mode:
        """When the server goes on."""
        return instantiate(self.config.mode, "mode")

    @functools.cached_property
    def topology(self) -> Topology:
        """How updates become the next models."""
        if self.config.clustering.name == "finch":
            return Finch(self._public_images("clustering"))
        node = self.config.topology
        if node.name == "edge_cloud":
            return EdgeCloud(node.edge_rounds, node.edges, self.values["topology"]["members"])
        return Flat()

    def parts(self, parameters: list[Parameter]) -> dict[str, Part]:
        """What the other axes add to a round, in this order; the server optimizer must take ``parameters``."""
        config = self.config
        # With central noise no client's update may decide over another's; clipping bounds each anyway.
        longest = math.inf if config.privacy.name == "central" else self.settings.outlier_factor
        parts: dict[str, Part] = {"outliers": Outliers(longest)}
        if "server_part" in config.objective:
            parts["objective"] = instantiate(config.objective.server_part, "server_part")
        if config.server_optimizer._target_ is not None:
            optimizer = refusing("server_optimizer")(instantiate(config.server_optimizer, "server_optimizer"))
            optimizer(parameters)
            parts["server_optimizer"] = ServerOptimizerPart(ServerOptimizer(optimizer))
        if config.distillation.name == "server":
            node = config.distillation
            images = self._public_images("distillation")
            parts["distillation"] = ServerDistillation(
                images, self.optimizer, node.every, node.output, node.learning_rate_factor
            )
        if config.privacy.name != "none":
            parts["privacy"] = Privacy(**self.settings.privacy.model_dump())
        return parts

    def _public_images(self, group: str) -> PublicImages:
        """The images of a group's ``public`` data set, cropped as the run's own; opened when the federation begins."""
        node, dataset, spec = self.config[group], self.values["dataset"], self.data.first.spec
        own = {key: dataset[key] for key in ("input_size", "on_bad") if key in dataset}
        cropped = {**plain_values(node.public), **own}
        public = self.data_set(DictConfig(cropped))
        return PublicImages(
            data=public,
            count=node.images,
            seed=self.settings.seed,
            key=f"{group}.public",
            learner=lambda: self.learner(public.spec, self.build_model(spec)),
            local_keys=self.sharing.local_keys,
            threads=functools.partial(server_threads, self.settings.runtime, self.mode.clients_rest),
        )

    def any_head(self, spec: Spec) -> bool:
        """Whether what is shared of the model is the same whatever a client predicts."""
        shapes = []
        for arguments in (self.task.model_arguments(spec), self.task.other_arguments(spec)):
            model: nn.Module = instantiate(self.config.model, "model", self.task.builds["model"], **arguments)
            local = set(self.sharing.local_keys(model))
            shapes.append({key: tensor.shape for key, tensor in model.state_dict().items() if key not in local})
        return shapes[0] == shapes[1]
