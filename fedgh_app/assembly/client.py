"""The parts of a run that clients are made of, and the server evaluates with: data, model, learner, objective."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from fedgh_app.client.client import LocalTraining, TaskClient
from fedgh_app.config import instantiation
from fedgh_app.config.choices import plain_values
from fedgh_app.config.compose import fedgh_home
from fedgh_app.config.instantiation import instantiate, refusing
from fedgh_app.config.settings import Settings
from fedgh_app.data.federated import DataSet, FederatedData
from fedgh_app.data.partition import Partitioning
from fedgh_app.data.site import Site
from fedgh_app.errors import UserError
from fedgh_app.runs.opening import load_run
from fedgh_app.runs.storage import load_model
from fedgh_app.task import Learner, Parts, Spec, Task, Values, task_of
from fedgh_app.vision.objectives import Objective
from fedgh_app.vision.schedules import Schedule
from fedgh_app.vision.sharing import Sharing
from fedgh_app.vision.training import OptimizerFactory, place
from strategies.gaussian import GaussianMechanism
from strategies.randomness import derive_seed


class ClientAssembly:
    """Every part of a client, built from a config when it is first asked for, and once."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self._guides: dict[str, Any] = {}
        self._learners: dict[str, tuple[Learner, LocalTraining]] = {}

    @functools.cached_property
    def settings(self) -> Settings:
        """The single values."""
        return Settings.of(self.config)

    @functools.cached_property
    def values(self) -> Values:
        """The whole config as plain values."""
        return plain_values(self.config)

    @functools.cached_property
    def task(self) -> Task:
        """The task of the data sets; UserError where they differ in it."""
        tasks = {task_of(str(node.spec)).name: task_of(str(node.spec)) for node in self._members().values()}
        if len(tasks) > 1:
            raise UserError(
                f"dataset={self.config.dataset.spec}: its data sets are for {' and '.join(tasks)}; expected one task"
            )
        return next(iter(tasks.values()))

    def _members(self) -> Mapping[str, DictConfig]:
        """The ``dataset`` node of each data set of the federation, by name."""
        dataset = self.config.dataset
        return dict(dataset.members) if "members" in dataset else {str(dataset.spec): dataset}

    @functools.cached_property
    def data(self) -> FederatedData:
        """The data sets, none of them opened; UserError where one cannot be parted as the config says."""
        settings = self.settings
        return FederatedData(
            str(self.config.dataset.spec),
            {name: self._data_set(name, node) for name, node in self._members().items()},
            settings.num_clients,
            settings.runtime.num_supernodes,
            settings.runtime.speeds,
        )

    def data_set(self, node: DictConfig) -> DataSet:
        """A data set that is not parted."""
        spec = task_of(str(node.spec)).load_spec(str(node.spec))
        root = Path(node.root).expanduser().resolve()
        return DataSet(task_of(spec.name), spec, root, plain_values(node), fedgh_home() / "cache" / "crops")

    def _data_set(self, name: str, node: DictConfig) -> DataSet:
        partition, count = self.config.partition, None
        if partition.get("partition_by") is not None and "members" in self.config.dataset:
            partition, count = self._own_partition(name, node)
        alone = self.data_set(node)
        if partition._target_ is None:
            return alone
        partitioning = Partitioning(
            make=functools.partial(instantiate, partition, "partition"),
            by=partition.get("partition_by"),
            takes_number="num_partitions" in partition,
            settings={str(key): value for key, value in partition.items() if key != "num_partitions"},
            seed=self.settings.seed,
            directory=fedgh_home() / "cache" / "partitions",
        )
        return dataclasses.replace(alone, partitioning=partitioning, num_clients=count)

    def _own_partition(self, name: str, node: DictConfig) -> tuple[DictConfig, int | None]:
        """How one of several data sets is parted by its own attribute; one client holds all of a set without one."""
        partition, dataset = self.config.partition, self.config.dataset
        if partition.partition_by != dataset.natural_attribute:
            raise UserError(
                f"partition.partition_by={partition.partition_by}: each data set of {dataset.spec} is parted by its "
                f"own attribute; expected dataset.members.{name}.natural_attribute={partition.partition_by}"
            )
        if node.natural_attribute is not None:
            return DictConfig({**partition, "partition_by": node.natural_attribute}), None
        if "num_partitions" not in partition:
            iid = {"_target_": "flwr_datasets.partitioner.IidPartitioner", "num_partitions": 1}
            return DictConfig(iid), 1
        raise UserError(
            f"dataset.members.{name}.natural_attribute=null: this partition needs an attribute to part {name} by; "
            "expected partition=natural, partition=iid or partition=size_skewed"
        )

    @functools.cached_property
    def device(self) -> torch.device:
        """A GPU where the runtime grants a share of one, else the CPU."""
        wanted = self.settings.runtime.client_gpus > 0 and torch.cuda.is_available()
        return torch.device("cuda" if wanted else "cpu")

    def build_model(self, spec: Spec) -> nn.Module:
        """The configured model for what ``spec`` predicts, with initial weights that depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.settings.seed, "model"))
            return instantiation.build_model(self.config.model, self.task, spec)

    def initial_state(self, spec: Spec) -> dict[str, torch.Tensor]:
        """What round 1 starts from: fresh weights, or ``init``'s; UserError where those have other keys or shapes."""
        state = self.build_model(spec).state_dict()
        if self.settings.init is None:
            return dict(state)
        file = Path(self.settings.init)
        stored, _ = load_model(file)
        for key, tensor in state.items():
            if key not in stored or stored[key].shape != tensor.shape:
                shape = tuple(stored[key].shape) if key in stored else "nothing"
                raise UserError(f"init={file}: {key} is {shape}; expected shape {tuple(tensor.shape)}, as in model=…")
        return {key: stored[key] for key in state}

    @functools.cached_property
    def loss(self) -> Any:
        """The loss."""
        return instantiate(self.config.loss, "loss", self.task.builds["loss"])

    @functools.cached_property
    def augmentation(self) -> Any:
        """What training images go through; None for a task that has none."""
        if "augmentation" not in self.task.builds:
            return None
        return instantiate(self.config.augmentation, "augmentation", self.task.builds["augmentation"])

    @functools.cached_property
    def objective(self) -> Objective:
        """What a client minimises beside its loss."""
        return instantiate(self.config.objective, "objective")

    @functools.cached_property
    def sharing(self) -> Sharing:
        """Which part of the model leaves a client."""
        return instantiate(self.config.sharing, "sharing")

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The factor on the learning rate by round."""
        return instantiate(self.config.schedule, "schedule")

    @functools.cached_property
    def optimizer(self) -> OptimizerFactory:
        """The configured optimizer, of parameters and a factor on its learning rate."""
        make, rate = instantiate(self.config.optimizer, "optimizer"), self.learning_rate

        def build(parameters: Iterable[nn.Parameter], factor: float = 1.0) -> torch.optim.Optimizer:
            with refusing("optimizer"):
                return make(parameters, lr=rate * factor)

        return build

    @property
    def learning_rate(self) -> float:
        """The configured learning rate, before the schedule."""
        with refusing("optimizer"):
            return float(self.config.optimizer.lr)

    def mechanism(self, where: str) -> GaussianMechanism | None:
        """What clips and adds noise ``where``, ``central`` or ``local``; None where this run does not do it there."""
        privacy = self.config.privacy
        return GaussianMechanism(privacy.clipping_norm, privacy.noise_multiplier) if privacy.name == where else None

    @functools.cached_property
    def distillation(self) -> Any:
        """How models in training are guided by a teacher; None without one."""
        node = DictConfig({key: value for key, value in self.config.teacher.items() if key != "run"})
        return None if node._target_ is None else instantiate(node, "teacher", self.task.builds["teacher"])

    def guide(self, spec: Spec) -> Any:
        """The teacher beside models trained on such data, or None; UserError where it is no run, or cannot teach."""
        if self.distillation is None:
            return None
        if spec.name not in self._guides:
            path = self.config.teacher.run
            if path is None:
                raise UserError("teacher.run=null: expected a path, or a node config that says teacher=PATH")
            teacher = load_run(Path(path).expanduser())
            place(teacher.model, self.device)
            groups = self.values["model"], spec, self.values["dataset"]
            self._guides[spec.name] = self.task.guide(self.distillation, teacher, *groups)
        return self._guides[spec.name]

    def learner(self, spec: Spec, model: nn.Module, *, taught: bool = False) -> Learner:
        """``model`` with what its training, where ``taught`` under the teacher, and testing on such data take."""
        evaluate, guide = self.values["evaluate"], self.guide(spec) if taught else None
        parts = Parts(self.loss, self.augmentation, self.settings.batch_size, evaluate, self.device, guide)
        return self.task.learner(spec, model, parts)

    def client(self, site: Site) -> TaskClient:
        """The client of a site; clients of one data set in one process share a model, which every call loads anew."""
        spec = site.examples.spec
        if spec.name not in self._learners:
            model = self.build_model(spec)
            initial = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            training = LocalTraining(
                self.settings,
                self.objective,
                self.optimizer,
                self.learning_rate,
                self.schedule,
                self.sharing.local_keys(model),
                initial,
                self.mechanism("local"),
            )
            self._learners[spec.name] = self.learner(spec, model, taught=True), training
        learner, training = self._learners[spec.name]
        return TaskClient(site, learner, training)

    def check(self) -> None:
        """Build every part that needs no data, so that a wrong argument is told before any process starts."""
        spec = self.data.first.spec
        _ = self.loss, self.augmentation, self.schedule, self.objective, self.sharing, self.distillation
        self.mechanism("local")
        if self.config.teacher.get("run") is not None:
            self.guide(spec)
        self.initial_state(spec)
        model = self.build_model(spec)
        self.sharing.local_keys(model)
        self.optimizer(model.parameters(), 1.0)
