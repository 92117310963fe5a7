"""One configuration for every process: composed by Hydra, checked before anything starts.

The launcher, the ServerApp and each ClientApp compose the same config from the same list of overrides, so nothing but
that list has to travel.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import shlex
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgh_app.pose.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"

# Overrides reach the machines of other people: a `_target_` stands only where an object is built, and names a class
# under these modules. A function, or something that a module merely imports, could do anything.
TARGETS = {
    "strategy": ("strategies",),
    "model": ("fedgh_app.pose.models", "torchvision.models", "timm.models"),
    "loss": ("fedgh_app.pose.losses", "torch.nn"),
    "augmentation": ("fedgh_app.pose.batches",),
    "optimizer": ("torch.optim", "timm.optim"),
    "schedule": ("fedgh_app.pose.schedules",),
    "partition": ("flwr_datasets.partitioner",),
}
HYDRA_KEYS = ("_target_", "_args_", "_recursive_", "_convert_", "_method_")


def fedgh_home() -> Path:
    """Where data sets, crop caches and partitions lie: ``$FEDGH_HOME``, else ``~/.cache/fedgh``."""
    return Path(os.environ.get("FEDGH_HOME") or Path.home() / ".cache" / "fedgh").expanduser().resolve()


OmegaConf.register_new_resolver("fedgh_home", lambda: str(fedgh_home()), replace=True)


def groups() -> dict[str, list[str]]:
    """The config groups and the choices of each, as the files under ``conf/`` stand."""
    return {
        folder.name: sorted(choice.stem for choice in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def join_overrides(overrides: Sequence[str]) -> str:
    """Many overrides as the one string that Flower's run config carries; `split_overrides` undoes it."""
    return shlex.join(overrides)


def split_overrides(text: str) -> list[str]:
    """The overrides in ``text``, separated by blanks and quoted as in a shell.

    Raises UserError if a quote is left open.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"overrides={text!r}: {error}; expected overrides separated by blanks") from None


def quoted(path: Path) -> str:
    """A path as an override's value: quoted for Hydra's grammar, which gives blanks, commas and ``=`` a meaning."""
    # Hydra takes a backslash for itself, but before a quote and at the end of a quoted value.
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), str(path))
    return f"'{text}'"


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose and check the config of one run.

    Args:
        overrides: Hydra overrides, such as ``["strategy=fedaw", "rounds=3"]``.

    Raises:
        UserError: an unknown key or choice, a wrong type, a value out of range, a forbidden ``_target_``; one line
            that names the key, the value, and what was expected.
    """
    parsed = _parse(overrides)
    _check_sweeps(parsed)
    _check_choices(parsed)
    # `experiment=null` is the default, which Hydra cannot say of an optional group.
    choices = [str(item.input_line) for item in parsed if item.key_or_group in groups() and item.value() is not None]
    values = [str(item.input_line) for item in parsed if item.key_or_group not in groups()]
    base = _compose(choices)
    _check_keys(base, parsed)
    config = _compose([*choices, *values])
    _check_types(base, config)
    _check_targets(config)
    _check_values(config)
    return config


def run_name(config: DictConfig) -> str:
    """Name of a run directory that nobody named: time, strategy (or baseline), data set, seed."""
    strategy = str(config.strategy._target_).rsplit(".", 1)[-1].lower()
    kind = config.runtime.name if config.runtime.name in ("centralised", "local") else strategy
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}-{config.dataset.spec}-s{config.seed}"


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a multirun, in Hydra's own order (the product of all sweeps)."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        batches = BasicSweeper.split_arguments(_parse(overrides), None)
    except HydraException as error:
        raise UserError(f"{' '.join(overrides)}: {_first_line(error)}") from None
    return [list(job) for batch in batches for job in batch]


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"cannot read the overrides {list(overrides)}: {_first_line(error)}") from None


def _compose(overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            config = compose(config_name="config", overrides=list(overrides))
            OmegaConf.resolve(config)
            return config
    except MissingConfigException as error:
        raise UserError(_first_line(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{' '.join(overrides)}: {_first_line(error.__cause__ or error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(sorted(names))}"


def _check_sweeps(parsed: Sequence[Override]) -> None:
    for item in parsed:
        if item.is_sweep_override():
            raise UserError(f"{item.input_line}: several values; expected one, or the flag -m to run them all")


def _check_choices(parsed: Sequence[Override]) -> None:
    known = groups()
    for item in parsed:
        group = item.key_or_group
        if group not in known:
            continue
        if item.is_delete() or (item.value() is None and group != "experiment"):
            raise UserError(f"{item.input_line}: a run needs a {group}; expected one of {', '.join(known[group])}")
        choice = item.value()
        if choice is None:
            continue
        if choice not in known[group]:
            raise UserError(f"{group}={choice}: no such {group}; {_nearest(str(choice), known[group])}")


def _check_keys(base: DictConfig, parsed: Sequence[Override]) -> None:
    for item in parsed:
        key = item.key_or_group
        if key in groups() or item.is_add() or key.startswith("hydra."):
            continue
        if item.is_delete() and "." not in key:
            raise UserError(f"{item.input_line}: a run needs {key}; expected a value")
        node: Any = base
        path: list[str] = []
        for part in re.split(r"[.\[\]]+", key.strip("]")):
            if isinstance(node, DictConfig) and part not in node:
                where = ".".join(path) or "the config"
                names = sorted({*map(str, node), *(groups() if not path else ())})
                # Free-form tables (client speeds) have no fixed keys.
                if not names:
                    break
                raise UserError(f"{key}: {where} has no key {part!r}; {_nearest(part, names)}")
            if not isinstance(node, DictConfig | ListConfig):
                raise UserError(f"{key}: {'.'.join(path)} is a single value and has no key {part!r}")
            node = node[part] if isinstance(node, DictConfig) else node
            path.append(part)


def _check_types(base: DictConfig, config: DictConfig, path: str = "") -> None:
    """A value keeps the type that its default has; a null default accepts any type."""
    for key in base:
        name = f"{path}{key!s}"
        default, value = base[key], config.get(key)
        if isinstance(default, DictConfig):
            if not isinstance(value, DictConfig):
                raise UserError(f"{name}={value}: expected a group of values, not a single one")
            _check_types(default, value, f"{name}.")
        elif default is not None and key in config and value is None:
            raise UserError(f"{name}=null: expected {_type_name(default)}")
        elif default is not None and value is not None and not _same_type(default, value):
            raise UserError(f"{name}={value}: expected {_type_name(default)}, not {_type_name(value)}")


def _same_type(default: Any, value: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _type_name(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a word",
        ListConfig: "a list",
    }
    return next((name for kind, name in names.items() if isinstance(value, kind)), type(value).__name__)


def _check_targets(config: DictConfig) -> None:
    for key, value in config.items():
        if key == "hydra":
            continue
        if key in TARGETS and isinstance(value, DictConfig):
            _check_target(str(key), value.get("_target_"))
            value = {name: item for name, item in value.items() if name != "_target_"}
        _check_no_target(value, str(key))


def _check_target(group: str, target: Any) -> None:
    if target is None and group == "partition":
        return  # every site holds its own data: nothing to build
    module, _, name = str(target).rpartition(".")
    allowed = TARGETS[group]
    if not name[:1].isupper() or not any(module == base or module.startswith(f"{base}.") for base in allowed):
        raise UserError(f"{group}._target_={target}: expected a class under {' or '.join(allowed)}")


def _check_no_target(node: Any, path: str) -> None:
    """Nothing but the groups' own `_target_` builds an object: not one in an argument, however deep."""
    if isinstance(node, DictConfig | dict):
        for key, value in node.items():
            if key in HYDRA_KEYS:
                raise UserError(f"{path}.{key!s}={value}: expected no {key!s} here")
            _check_no_target(value, f"{path}.{key!s}")
    elif isinstance(node, ListConfig | list):
        for place, value in enumerate(node):
            _check_no_target(value, f"{path}[{place}]")


_AT_LEAST = {
    "rounds": 0,
    "num_clients": 1,
    "local_epochs": 1,
    "batch_size": 1,
    "min_clients": 1,
    "keep_checkpoints": 0,
    "evaluate.central_every": 0,
    "evaluate.clients_every": 0,
    "runtime.client_cpus": 1,
    "runtime.server_cpus": 1,
    "runtime.num_supernodes": 1,
}


def _check_values(config: DictConfig) -> None:
    for key, least in _AT_LEAST.items():
        value = OmegaConf.select(config, key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UserError(f"{key}={value}: expected a whole number of at least {least}")
    if config.seed < 0:
        raise UserError(f"seed={config.seed}: expected a whole number of at least 0")
    if config.round_timeout <= 0:
        raise UserError(f"round_timeout={config.round_timeout}: expected a positive number of seconds")
    if config.dataset.on_bad not in ("raise", "skip"):
        raise UserError(f"dataset.on_bad={config.dataset.on_bad}: expected raise or skip")
    size = list(config.dataset.input_size)
    if len(size) != 2 or any(not isinstance(side, int) or side < 32 or side % 32 for side in size):
        raise UserError(f"dataset.input_size={size}: expected [height, width], each a multiple of 32")
    if config.init is not None and not isinstance(config.init, str):
        raise UserError(f"init={config.init}: expected a run directory or a model.safetensors")
    if config.tracking.get("mode") not in (None, "online", "offline", "disabled"):
        raise UserError(f"tracking.mode={config.tracking.mode}: expected online, offline, disabled or null")
    by = config.partition.get("partition_by", "")
    if by is None:
        raise UserError(
            f"partition.partition_by=null: data set {config.dataset.spec} records no attribute to part by; "
            "expected partition=iid, partition=size_skewed, or an attribute's name"
        )


def instantiate(node: DictConfig, group: str, **kwargs: Any) -> Any:
    """Build the object that a group describes (``hydra.utils.instantiate``), from an allowed class only.

    Args:
        node: the group's config, with a ``_target_``.
        group: its name, for error messages and for what it may build.
        kwargs: further arguments for the constructor.

    Raises:
        UserError: the class does not exist, or refuses its arguments.
    """
    made = _class_of(node, group)
    try:
        return hydra.utils.instantiate(node, _convert_="all", _recursive_=False, **kwargs)
    # Whatever a constructor raises, it is the config's values that it was given.
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"{group}: {_first_line(cause)}{_accepted(made, cause)}") from None


def _class_of(node: DictConfig, group: str) -> type:
    """The class that ``_target_`` names, defined where it may be; UserError for anything else."""
    target = str(node._target_)
    _check_target(group, target)
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{group}._target_={target}: {_first_line(error)}") from None
    packages = {base.split(".")[0] for base in TARGETS[group]}
    if not inspect.isclass(found) or found.__module__.split(".")[0] not in packages:
        raise UserError(f"{group}._target_={target}: expected a class of {' or '.join(sorted(packages))}")
    return found


def build_optimizer(config: DictConfig, parameters: Iterable[Any], factor: float = 1.0) -> Any:
    """The configured torch optimizer over ``parameters``, its learning rate times ``factor``.

    Raises UserError where it refuses its arguments.
    """
    make = instantiate(config.optimizer, "optimizer")
    try:
        return make(parameters, lr=config.optimizer.lr * factor)
    except Exception as error:
        raise UserError(f"optimizer: {_first_line(error)}") from None


def _accepted(made: type, cause: BaseException) -> str:
    """The arguments that a class takes, where it was given one that it does not."""
    if not (isinstance(cause, TypeError) and "unexpected keyword" in str(cause)):
        return ""
    return f"; it takes {', '.join(inspect.signature(made).parameters)}"
