"""What a config says otherwise than the defaults."""

from __future__ import annotations

import functools
from typing import Any

from omegaconf import DictConfig

from fedgh_app.config.compose import compose_config, groups

# What a run is told by elsewhere, or what says nothing about its model.
TOLD = (
    *("dataset", "runtime", "tracking", "callbacks", "keep_checkpoints"),
    *("run_dir", "seed", "rounds", "num_clients", "resume"),
)


def changes(config: DictConfig, *without: str) -> list[str]:
    """What a config says otherwise than the default one, but for some keys: ``key=value``, and a choice by its name."""
    changed: list[str] = []
    usual = _defaults()
    for key in map(str, config):
        node = config[key]
        if key in (*TOLD, *without) or node == usual.get(key):
            continue
        if key not in usual or not isinstance(node, type(usual[key])):  # a run of another version
            changed.append(f"{key}={node}")
        elif key in groups():
            changed += _group(key, node, usual[key], config)
        elif isinstance(node, DictConfig):
            changed += [f"{key}.{name}={node[name]}" for name in map(str, node) if node[name] != usual[key].get(name)]
        else:
            changed.append(f"{key}={node}")
    return changed


def _group(key: str, node: DictConfig, usual: DictConfig, config: DictConfig) -> list[str]:
    """Such as ``objective=Prox (mu=0.1)``: values are told that the default choice has not, or has otherwise.

    Those that follow from the run's seed and data set are not.
    """
    follow = {"seed": config.seed, "partition_by": config.dataset.natural_attribute}
    names = [name for name in map(str, node) if not name.startswith("_") and name != "name"]
    values = {name: node[name] for name in names if node[name] not in (usual.get(name), follow.get(name))}
    if not values and class_of(node) == class_of(usual):
        return []
    told = ", ".join(f"{name}={_value(value)}" for name, value in values.items())
    return [f"{key}={class_of(node)}" + (f" ({told})" if told else "")]


def _value(value: Any) -> str:
    """A value of the config; a choice that stands inside another by its name."""
    return class_of(value) if isinstance(value, DictConfig) else str(value)


def class_of(node: DictConfig) -> str:
    """A choice by the class it builds, else by its name."""
    return str(node.get("_target_") or node.get("name") or node.get("spec") or "none").rpartition(".")[2]


@functools.cache
def _defaults() -> DictConfig:
    return compose_config([])
