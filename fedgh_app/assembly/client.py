"""Model, data and training of a run, from its config. A stand-in over `fedgh_app.data.site`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from fedgh_app.client import privacy
from fedgh_app.client.teacher import distillation_of, guide_of
from fedgh_app.config.compose import fedgh_home
from fedgh_app.config.instantiation import build_optimizer, instantiate
from fedgh_app.data import site
from fedgh_app.errors import UserError
from fedgh_app.pose.data.cache import CropCache, open_cache
from fedgh_app.pose.data.records import DatasetSpec, load_spec
from fedgh_app.pose.task import POSE, Pose


def task(config: DictConfig) -> Pose:
    """What models are trained for."""
    return POSE


def spec(config: DictConfig) -> DatasetSpec:
    """The data set of a run; of several, the first."""
    return next(iter(site.specs(config).values()))


def build_model(config: DictConfig, spec: DatasetSpec) -> nn.Module:
    """The configured model, with initial weights that depend on the seed alone."""
    return site.build_model(config, spec)


def initial_state(config: DictConfig, spec: DatasetSpec) -> dict[str, Tensor]:
    """The state dict that round 1 starts from: fresh, or the model that ``init`` names."""
    return site.initial_state(config, spec)


def shared_keys(config: DictConfig, model: nn.Module) -> tuple[str, ...]:
    """Keys of the state dict that the federation shares, in its order."""
    local = set(instantiate(config.sharing, "sharing").local_keys(model))
    return tuple(key for key in model.state_dict() if key not in local)


def batch_statistics(config: DictConfig) -> bool:
    """Whether the server's BatchNorm has no statistics of its own, because they stay on the clients."""
    from fedgh_app.config.combinations import fedbn

    return fedbn(config)


def any_head(config: DictConfig, spec: DatasetSpec) -> bool:
    """Whether what is shared of the model is the same whatever a client predicts."""
    shapes = []
    for count in (len(spec.keypoints), len(spec.keypoints) + 1):
        model = instantiate(config.model, "model", num_keypoints=count)
        state = model.state_dict()
        shapes.append({key: state[key].shape for key in shared_keys(config, model)})
    return shapes[0] == shapes[1]


def network(config: DictConfig, spec: DatasetSpec) -> dict[str, object]:
    """How the model is built, as its file tells it."""
    return {**{str(key): value for key, value in config.model.items()}, "num_keypoints": len(spec.keypoints)}


def device(config: DictConfig) -> torch.device:
    """Where models run."""
    return site.device_of(config)


def optimizer(config: DictConfig) -> Callable[[Iterable[Parameter], float], Optimizer]:
    """Makes the clients' optimizer from parameters and a factor on its learning rate."""

    def make(parameters: Iterable[Parameter], factor: float) -> Optimizer:
        made: Optimizer = build_optimizer(config, parameters, factor)
        return made

    return make


def open_public(config: DictConfig, dataset: DictConfig, key: str) -> CropCache:
    """Another data set's examples, cropped as the run's own.

    Args:
        config: the run's.
        dataset: the other's node.
        key: of that node, for the error.
    """
    other, root = load_spec(dataset.spec), Path(dataset.root).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"{key}.root={root}: no such directory; expected data set {dataset.spec}: {other.obtain}")
    return open_cache(
        other,
        root,
        input_size=tuple(config.dataset.input_size),
        on_bad=config.dataset.on_bad,
        directory=fedgh_home() / "cache" / "crops",
    )


def check(config: DictConfig, spec: DatasetSpec) -> None:
    """Build every part of a client that needs no data once; UserError where one refuses its arguments."""
    for part in ("loss", "augmentation", "objective"):
        instantiate(config[part], part)
    privacy.mechanism(config)
    distillation_of(config)
    if config.teacher.get("run") is not None:
        guide_of(config, spec)
