"""What a config says otherwise than the defaults."""

import functools
from collections.abc import Mapping
from typing import Any

from fedgh_app.config.choices import FACTS, groups, plain_values, values_of
from fedgh_app.config.compose import compose_config
from fedgh_app.resources import Values

# What a run is told by elsewhere, or what says nothing about its model.
TOLD = {"dataset", "runtime", "tracking", "callbacks", "keep_checkpoints"}
TOLD |= {"run_dir", "seed", "rounds", "num_clients", "resume"}


def changes(config: Values, *without: str) -> list[str]:
    """What a config says otherwise than the default one, but for some keys: ``key=value``, and a choice by its name."""
    changed: list[str] = []
    usual = _defaults()
    for key, node in config.items():
        if key == "dataset":
            changed += _of_data(node)
        if key in TOLD.union(without) or node == usual.get(key):
            continue
        alike = key in usual and isinstance(node, Mapping) == isinstance(usual[key], Mapping)  # else of another version
        if alike and key in groups():
            changed += _group(key, node, usual[key], config)
        elif alike and isinstance(node, Mapping):
            changed += [f"{key}.{name}={value}" for name, value in node.items() if value != usual[key].get(name)]
        else:
            changed.append(f"{key}={node}")
    return changed


def _group(key: str, node: Values, usual: Values, config: Values) -> list[str]:
    """Such as ``objective=Prox (mu=0.1)``, without values that are the default or follow from seed and data set."""
    follow = {"seed": config["seed"], "partition_by": config["dataset"].get("natural_attribute")}
    about = ("name", *FACTS)
    told = {name: value for name, value in node.items() if not str(name).startswith("_") and name not in about}
    values = {name: value for name, value in told.items() if value not in (usual.get(name), follow.get(name))}
    if not values and class_of(node) == class_of(usual):
        return []
    named = ", ".join(f"{name}={_value(value)}" for name, value in values.items())
    return [f"{key}={class_of(node)}" + (f" ({named})" if named else "")]


def _of_data(node: Values) -> list[str]:
    """What is otherwise than in the file of the data set; where it lies is of no interest, and how much of it is told
    elsewhere.
    """
    spec = str(node.get("spec"))
    if spec not in groups()["dataset"]:
        return []
    usual = plain_values(values_of("dataset", spec))
    fixed = {name: value for name, value in usual.items() if "${" not in str(value)}
    return [f"dataset.{name}={node[name]}" for name, value in fixed.items() if node.get(name, value) != value]


def _value(value: object) -> str:
    return class_of(value) if isinstance(value, Mapping) else str(value)


def class_of(node: Values) -> str:
    """A choice by the class it builds, else by its name."""
    return str(node.get("_target_") or node.get("name") or node.get("spec") or "none").rpartition(".")[2]


@functools.cache
def _defaults() -> dict[str, Any]:
    return plain_values(compose_config([]))
