"""What a config is held to before any process starts; each error is one line that says what was expected."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig

from fedgh_app.config.choices import FACTS
from fedgh_app.config.instantiation import HYDRA_KEYS, NESTED, TARGETS, check_target
from fedgh_app.config.settings import Settings, held_to, types_of
from fedgh_app.errors import UserError
from fedgh_app.tasks import TASKS, module_of, package_of, task_name

Groups = Mapping[str, Sequence[str]]


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(sorted(names))}"


def check_overrides(parsed: Sequence[Override], groups: Groups) -> None:
    """Each override is one value, and each chosen group has that choice; UserError otherwise."""
    for item in parsed:
        if re.match(r"hydra\b", item.key_or_group):  # it would read files and build objects
            raise UserError(f"{item.input_line}: Hydra's own settings stay; expected run_dir=DIR for where a run lies")
        if item.is_sweep_override():
            raise UserError(f"{item.input_line}: several values; expected one, or the flag -m to run them all")
        group = item.key_or_group
        if group not in groups:
            if item.package is not None:
                raise UserError(f"{item.input_line}: {group} is no group; expected {group}=VALUE")
            continue
        choice = item.value()
        if item.is_delete() or (choice is None and group != "experiment"):
            raise UserError(f"{item.input_line}: a run needs a {group}; expected one of {', '.join(groups[group])}")
        if choice is not None and choice not in groups[group]:
            raise UserError(f"{group}={choice}: no such {group}; {_nearest(str(choice), groups[group])}")


def check_keys(base: DictConfig, parsed: Sequence[Override], groups: Groups) -> None:
    """Each override names a key that ``base``, the config without single values, has; UserError otherwise."""
    for item in parsed:
        key = item.key_or_group
        if key in groups or item.is_add():
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


def check_resolved(node: object, path: str = "") -> None:
    """Refuse (UserError) a value that became a reference as it was put together: each reading would follow it."""
    if isinstance(node, str) and "${" in node:
        raise UserError(f"{path}: found a reference in its value, expected one to another key, as ${{KEY}}")
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        check_resolved(value, f"{path}.{key}" if path else str(key))


def check_config(base: DictConfig, config: DictConfig) -> None:
    """Types as in ``base``, targets that may be built, values in range; UserError otherwise."""
    held_to(types_of(base), config)
    _check_facts(base, config)
    _check_targets(config)
    Settings.of(config)
    _check_by_task(config)
    _check_teacher(config)
    if config.partition.get("partition_by", "") is None:
        raise UserError(
            f"partition.partition_by=null: data set {config.dataset.spec} records no attribute to part by; "
            "expected partition=iid, partition=size_skewed, or an attribute's name"
        )


def _check_by_task(config: DictConfig) -> None:
    """Have the task of each data set check what only it can tell wrong (``checks.py`` in its package)."""
    members = config.dataset.get("members") or {"": config.dataset}
    for task in dict.fromkeys(task_name(str(node.spec)) for node in members.values()):
        if checks := module_of(task, "checks"):
            checks.check(config)


def _check_facts(base: DictConfig, config: DictConfig) -> None:
    """What a choice says of itself stays, and the class it says it of; no setting is missing. UserError otherwise."""
    for group, node in base.items():
        if not isinstance(node, DictConfig):
            continue
        named = ["name"] if "name" in node else []
        for key in [*named, *FACTS, *(["_target_"] if group in FACTS.values() else [])]:
            if (value := config[group].get(key)) != node.get(key):
                raise UserError(f"{group!s}.{key}={value}: expected {group!s}=CHOICE to choose another")
        if "_target_" not in node and group != "callbacks":  # what is no call, and no table, has all its keys
            for key in sorted(node.keys() - config[group].keys()):
                raise UserError(f"{group!s}.{key}: is missing; expected a value, such as {node[key]}")


def _check_targets(config: DictConfig) -> None:
    for key, value in config.items():
        if key == "callbacks":  # a table of objects, each under a name of its own
            value = {name: _checked_callback(str(name), node) for name, node in value.items()}
        else:
            value = _checked_target(str(key), value)
        for name, group in NESTED.get(str(key), {}).items():
            if name in value:
                value = {**value, name: _checked_target(group, value[name])}
        _check_no_target(value, str(key))


def _checked_target(group: str, node: object) -> object:
    """The node of a group without its own `_target_`, which was found to be allowed."""
    if group not in TARGETS or not isinstance(node, DictConfig):
        return node
    check_target(group, node.get("_target_"), TARGETS[group] or [package_of(task) for task in TASKS])
    return {name: item for name, item in node.items() if name != "_target_"}


def _checked_callback(name: str, node: object) -> object:
    if not isinstance(node, DictConfig):
        raise UserError(f"callbacks.{name}={node}: expected a _target_ and its arguments")
    return _checked_target("callbacks", node)


def _check_no_target(node: object, path: str) -> None:
    """Nothing but the groups' own `_target_` builds an object: not one in an argument, however deep."""
    if isinstance(node, DictConfig | dict):
        for key, value in node.items():
            if key in HYDRA_KEYS:
                raise UserError(f"{path}.{key!s}={value}: expected no {key!s} here")
            _check_no_target(value, f"{path}.{key!s}")
    elif isinstance(node, ListConfig | list):
        for place, value in enumerate(node):
            _check_no_target(value, f"{path}[{place}]")


def _check_teacher(config: DictConfig) -> None:
    if config.teacher._target_ is None:
        return
    run = config.teacher.run
    if run is None and config.partition._target_ is None:
        return  # sites that hold their own data may each hold a copy of the teacher too, and say where
    if not isinstance(run, str):
        shown = "null" if run is None else run
        raise UserError(f"teacher.run={shown}: expected the run directory of a trained model")
