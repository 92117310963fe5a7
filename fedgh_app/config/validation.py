"""What a config is held to before any process starts; each error is one line that says what was expected."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from fedgh_app.config.combinations import check_combinations
from fedgh_app.config.instantiation import HYDRA_KEYS, TARGETS, check_target
from fedgh_app.errors import UserError

Groups = Mapping[str, Sequence[str]]

# Of Hydra's own keys, those that say where its launcher writes; others would read files or build objects.
HYDRA_MAY = ("hydra.run.", "hydra.sweep.", "hydra.job.")


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(sorted(names))}"


def check_overrides(parsed: Sequence[Override], groups: Groups) -> None:
    """Each override is one value, and each chosen group has that choice; UserError otherwise."""
    for item in parsed:
        if re.match(r"hydra\b", item.key_or_group) and not item.key_or_group.startswith(HYDRA_MAY):
            raise UserError(
                f"{item.input_line}: Hydra's own settings stay; expected one that begins with {', '.join(HYDRA_MAY)}"
            )
        if item.is_sweep_override():
            raise UserError(f"{item.input_line}: several values; expected one, or the flag -m to run them all")
        group = item.key_or_group
        if group not in groups:
            continue
        if item.is_delete() or (item.value() is None and group != "experiment"):
            raise UserError(f"{item.input_line}: a run needs a {group}; expected one of {', '.join(groups[group])}")
        choice = item.value()
        if choice is None:
            continue
        if choice not in groups[group]:
            raise UserError(f"{group}={choice}: no such {group}; {_nearest(str(choice), groups[group])}")


def check_keys(base: DictConfig, parsed: Sequence[Override], groups: Groups) -> None:
    """Each override names a key that ``base``, the config without single values, has; UserError otherwise."""
    for item in parsed:
        key = item.key_or_group
        if key in groups or item.is_add() or key.startswith("hydra."):
            continue
        if item.is_delete() and "." not in key:
            raise UserError(f"{item.input_line}: a run needs {key}; expected a value")
        node: Any = base
        path: list[str] = []
        for part in re.split(r"[.\[\]]+", key.strip("]")):
            if isinstance(node, DictConfig) and part not in node:
                where = ".".join(path) or "the config"
                names = sorted({*map(str, node), *(groups if not path else ())})
                # Free-form tables (client speeds) have no fixed keys.
                if not names:
                    break
                raise UserError(f"{key}: {where} has no key {part!r}; {_nearest(part, names)}")
            if not isinstance(node, DictConfig | ListConfig):
                raise UserError(f"{key}: {'.'.join(path)} is a single value and has no key {part!r}")
            node = node[part] if isinstance(node, DictConfig) else node
            path.append(part)


def check_resolved(node: Any, path: str = "") -> None:
    """No value that is put together out of others becomes a reference itself, which each reading would follow.

    Args:
        node: the resolved config, or what lies in it, as plain values.
        path: its key.
    """
    if isinstance(node, str) and "${" in node:
        raise UserError(f"{path}: found a reference in its value, expected one to another key, as ${{KEY}}")
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        check_resolved(value, f"{path}.{key}" if path else str(key))


def check_config(base: DictConfig, config: DictConfig) -> None:
    """Types as in ``base``, targets that may be built, values in range; UserError otherwise."""
    _check_types(base, config)
    _check_names(base, config)
    _check_targets(config)
    _check_values(config)
    check_combinations(config)


def _check_names(base: DictConfig, config: DictConfig) -> None:
    """What a choice is called says which keys it has; UserError where somebody set the name alone."""
    for group, node in base.items():
        if isinstance(node, DictConfig) and "name" in node and config[group].get("name") != node.name:
            raise UserError(f"{group!s}.name={config[group].get('name')}: expected {group!s}=CHOICE to choose another")


def _check_types(base: DictConfig, config: DictConfig, path: str = "") -> None:
    """A value keeps the type that its default has; a null default accepts any type."""
    for key in base:
        name = f"{path}{key!s}"
        default, value = base[key], config.get(key)
        if isinstance(default, DictConfig):
            if path == "callbacks." and key not in config:
                continue  # ~callbacks.NAME: one that this run goes without
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


# Nodes below a group that describe an object of another group.
_NESTED = {"topology": {"edge_strategy": "strategy"}}


def _check_targets(config: DictConfig) -> None:
    for key, value in config.items():
        if key == "hydra":
            continue
        if key == "callbacks":  # a table of objects, each under a name of its own
            value = {name: _checked_callback(str(name), node) for name, node in value.items()}
        else:
            value = _checked_target(str(key), value)
        for name, group in _NESTED.get(str(key), {}).items():
            if name in value:
                value = {**value, name: _checked_target(group, value[name])}
        _check_no_target(value, str(key))


def _checked_target(group: str, node: Any) -> Any:
    """The node of a group without its own `_target_`, which was found to be allowed."""
    if group not in TARGETS or not isinstance(node, DictConfig):
        return node
    check_target(group, node.get("_target_"))
    return {name: item for name, item in node.items() if name != "_target_"}


def _checked_callback(name: str, node: Any) -> Any:
    if not isinstance(node, DictConfig):
        raise UserError(f"callbacks.{name}={node}: expected a _target_ and its arguments")
    return _checked_target("callbacks", node)


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
    "distillation.images": 1,
    "clustering.images": 1,
    "topology.edge_rounds": 1,
}


# Far beyond what anybody trains; a slip or a hostile server would take all memory of every client.
LARGEST_SIDE = 1024
_AT_MOST = {"batch_size": 8192, "model.head_width": 4096, "distillation.images": 10**6, "clustering.images": 10**6}


def _check_values(config: DictConfig) -> None:
    for key, most in _AT_MOST.items():
        value = OmegaConf.select(config, key)
        if isinstance(value, int) and value > most:
            raise UserError(f"{key}={value}: expected a whole number of at most {most}")
    for key, least in _AT_LEAST.items():
        value = OmegaConf.select(config, key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UserError(f"{key}={value}: expected a whole number of at least {least}")
    if config.seed < 0:
        raise UserError(f"seed={config.seed}: expected a whole number of at least 0")
    if not 0 < config.evaluate.clients_fraction <= 1:
        raise UserError(
            f"evaluate.clients_fraction={config.evaluate.clients_fraction}: expected above 0 and at most 1; "
            "evaluate.clients_every=0 asks nobody"
        )
    if config.round_timeout <= 0:
        raise UserError(f"round_timeout={config.round_timeout}: expected a positive number of seconds")
    if not config.outlier_factor > 1:
        raise UserError(f"outlier_factor={config.outlier_factor}: expected a number above 1, or inf")
    if config.dataset.on_bad not in ("raise", "skip"):
        raise UserError(f"dataset.on_bad={config.dataset.on_bad}: expected raise or skip")
    if config.evaluate.decoding not in ("argmax", "quarter", "dark"):
        raise UserError(f"evaluate.decoding={config.evaluate.decoding}: expected argmax, quarter or dark")
    if config.runtime.get("node_timeout", 1) <= 0:
        raise UserError(f"runtime.node_timeout={config.runtime.node_timeout}: expected a positive number of seconds")
    size = list(config.dataset.input_size)
    if len(size) != 2 or any(type(side) is not int or not 32 <= side <= LARGEST_SIDE or side % 32 for side in size):
        raise UserError(
            f"dataset.input_size={size}: expected [height, width], each a multiple of 32, at most {LARGEST_SIDE}"
        )
    if config.resume is not None and not isinstance(config.resume, str):
        raise UserError(f"resume={config.resume}: expected a run directory")
    if config.init is not None and not isinstance(config.init, str):
        raise UserError(f"init={config.init}: expected a run directory or a model.safetensors")
    _check_teacher(config)
    _check_privacy(config)
    if config.tracking.get("mode") not in (None, "online", "offline", "disabled"):
        raise UserError(f"tracking.mode={config.tracking.mode}: expected online, offline, disabled or null")
    by = config.partition.get("partition_by", "")
    if by is None:
        raise UserError(
            f"partition.partition_by=null: data set {config.dataset.spec} records no attribute to part by; "
            "expected partition=iid, partition=size_skewed, or an attribute's name"
        )


def _check_privacy(config: DictConfig) -> None:
    if config.privacy.name == "none":
        return
    for key in ("clipping_norm", "noise_multiplier"):
        if not 0 < config.privacy[key] < math.inf:
            raise UserError(f"privacy.{key}={config.privacy[key]}: expected a number above 0")
    if not 0 < config.privacy.delta < 1:
        raise UserError(f"privacy.delta={config.privacy.delta}: expected a number between 0 and 1")


def _check_teacher(config: DictConfig) -> None:
    if config.teacher._target_ is None:
        return
    run = config.teacher.run
    if run is None and config.partition._target_ is None:
        return  # sites that hold their own data may each hold a copy of the teacher too, and say where
    if not isinstance(run, str):
        shown = "null" if run is None else run
        raise UserError(f"teacher.run={shown}: expected the run directory of a trained heatmap model")
