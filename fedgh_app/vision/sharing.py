"""Which part of a model the federation shares; the rest stays on the client and never leaves it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedgh_app.errors import UserError


class Sharing(Protocol):
    """Which part of a model stays on the client."""

    def local_keys(self, model: nn.Module) -> tuple[str, ...]:
        """Keys of the model's state dict that stay on the client, in its order."""


@dataclass(frozen=True)
class All:
    """The whole model is shared."""

    def local_keys(self, model: nn.Module) -> tuple[str, ...]:
        """Keys of the model's state dict that stay on the client: none."""
        return ()


@dataclass(frozen=True)
class FedBN:
    """Batch normalisation stays local (Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch
    Normalization", ICLR 2021): each site's cameras and lighting keep their own statistics.
    """

    def local_keys(self, model: nn.Module) -> tuple[str, ...]:
        """Keys of every parameter and buffer of every BatchNorm layer, in the state dict's order.

        Raises UserError where the model has no such layer, or nothing else.
        """
        # A layer that stands in two places of the model has keys for both.
        modules = model.named_modules(remove_duplicate=False)
        layers = {name for name, module in modules if isinstance(module, _BatchNorm)}
        keys = tuple(key for key in model.state_dict() if key.rpartition(".")[0] in layers)
        if not keys:
            raise UserError("sharing=fedbn: found no BatchNorm layer in the model, expected at least one")
        _check_that_something_is_shared(keys, model, "sharing=fedbn")
        return keys


@dataclass(frozen=True)
class FedPav:
    """Federated partial averaging (Zhuang et al., "Performance Optimization for Federated Person Re-identification via
    Benchmark Analysis", ACM MM 2020): the backbone is shared, the head stays local, so that clients whose images are
    annotated with different keypoints train one backbone together.

    Args:
        modules: the parts that stay on the client, as the model names them, such as ``head`` or ``backbone.layer4``.
    """

    modules: Sequence[str] = ("head",)

    def __post_init__(self) -> None:
        if isinstance(self.modules, str) or not self.modules:
            raise UserError(f"sharing.modules: found {self.modules!r}, expected a list of the model's modules")
        object.__setattr__(self, "modules", tuple(self.modules))  # a config's list would make this unhashable

    def local_keys(self, model: nn.Module) -> tuple[str, ...]:
        """Keys of every parameter and buffer in these modules, in the state dict's order.

        Raises UserError where one of them does not exist or holds nothing, or where nothing would be shared.
        """
        state = tuple(model.state_dict())
        known = {name for name, _ in model.named_modules(remove_duplicate=False) if name}
        for module in self.modules:
            if module not in known:
                parts = ", ".join(name for name, _ in model.named_children())
                raise UserError(f"sharing.modules: found {module!r}, expected modules of the model: {parts}, or within")
            if not any(key.startswith(f"{module}.") for key in state):
                raise UserError(f"sharing.modules: found {module!r}, expected a module that has parameters")
        keys = tuple(key for key in state if key.startswith(tuple(f"{module}." for module in self.modules)))
        _check_that_something_is_shared(keys, model, f"sharing.modules: found {', '.join(self.modules)}")
        return keys


def _check_that_something_is_shared(keys: tuple[str, ...], model: nn.Module, asked: str) -> None:
    """Refuse (UserError) local ``keys`` that leave no parameter of the model to share."""
    local = set(keys)
    if all(name in local for name, _ in model.named_parameters(remove_duplicate=False)):
        raise UserError(f"{asked}: nothing would be shared, expected at least one parameter outside")
