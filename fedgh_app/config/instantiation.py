"""From a group of the config to the object that it describes, of an allowed class only."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from fedgh_app.config.choices import FACTS
from fedgh_app.errors import UserError, first_line
from fedgh_app.resources import Values

if TYPE_CHECKING:  # what is misspelt is told without waiting for torch
    from torch import nn

    from fedgh_app.task import Spec, Task

# Overrides reach the machines of other people: a `_target_` stands only where an object is built, and names a class
# under these modules; no module: of those that the task at hand allows (`Task.builds`), which `instantiate` is told. A
# function, or something that a module merely imports, could do anything.
TARGETS = {
    "strategy": ("strategies",),
    "model": (),
    "loss": (),
    "augmentation": (),
    "optimizer": ("torch.optim", "timm.optim"),
    "schedule": ("fedgh_app.vision.schedules",),
    "server_optimizer": ("torch.optim", "timm.optim"),
    "objective": ("fedgh_app.vision.objectives", "fedgh_app.server.parts"),
    "server_part": ("fedgh_app.server.parts",),
    "sharing": ("fedgh_app.vision.sharing",),
    "teacher": (),
    "mode": ("fedgh_app.server.modes",),
    "selection": ("fedgh_app.server.selection",),
    "partition": ("flwr_datasets.partitioner",),
    "callbacks": ("fedgh_app.callbacks",),
}
# Nodes below a group that describe an object of another group; built by themselves, and no argument of the group's own.
NESTED = {"topology": {"edge_strategy": "strategy"}, "objective": {"server_part": "server_part"}}
HYDRA_KEYS = ("_target_", "_args_", "_recursive_", "_convert_", "_method_")


def check_target(group: str, target: object, allowed: Sequence[str] = ()) -> None:
    """Refuse (UserError) a ``_target_`` that is no class of the ``allowed`` modules, else of those in `TARGETS`."""
    if target is None and group in ("partition", "server_optimizer", "teacher"):
        return  # every site holds its own data, no server optimizer, no teacher: nothing to build
    module, _, name = str(target).rpartition(".")
    allowed = allowed or TARGETS[group]
    if not name[:1].isupper() or (allowed and not _is_under(module, allowed)):
        raise UserError(f"{group}._target_={target}: expected a class under {_named(allowed)}")


def instantiate(node: Values, group: str, allowed: Sequence[str] = (), /, **kwargs: Any) -> Any:
    """Build what a group describes, of a class under the modules ``allowed``, else those in `TARGETS`; or UserError."""
    made = _class_of(node, group, allowed or TARGETS[group])
    values = DictConfig({key: value for key, value in node.items() if key not in (*FACTS, *NESTED.get(group, ()))})
    try:
        return hydra.utils.instantiate(values, _convert_="all", _recursive_=False, **kwargs)
    # Whatever a constructor raises, it is the config's values that it was given.
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"{group}: {first_line(cause)}{_accepted(made, cause)}") from None


def _class_of(node: Values, group: str, allowed: Sequence[str]) -> type:
    """The class that ``_target_`` names, defined where it may be; UserError for anything else."""
    target = str(node.get("_target_"))
    check_target(group, target, allowed)
    if not allowed:
        raise UserError(f"{group}._target_={target}: expected a class under {_named(allowed)}")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{group}._target_={target}: {first_line(error)}") from None
    if not inspect.isclass(found) or not _is_under(found.__module__, allowed):
        raise UserError(f"{group}._target_={target}: expected a class of {_named(allowed)}")
    return found


def _named(modules: Sequence[str]) -> str:
    return " or ".join(modules) or "the package of its task"


def _is_under(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def build_model(node: Values, task: Task, spec: Spec) -> nn.Module:
    """The network of a ``model`` group for what ``spec`` predicts, drawn from PyTorch's global generator."""
    return instantiate(node, "model", task.builds["model"], **task.model_arguments(spec))


@contextmanager
def refusing(group: str) -> Iterator[None]:
    """Whatever the block raises is what a group's values are refused for (UserError)."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{group}: {first_line(error)}") from None


def _accepted(made: type, cause: BaseException) -> str:
    if not (isinstance(cause, TypeError) and "unexpected keyword" in str(cause)):
        return ""
    return f"; it takes {', '.join(inspect.signature(made).parameters)}"
