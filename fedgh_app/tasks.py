"""Which tasks there are, and the files that say of a data set which it is for: ``datasets/<name>.yaml``."""

import difflib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from fedgh_app.errors import UserError
from fedgh_app.resources import DATASETS

# By the name that `task:` has in these files: the module that holds the task's one instance, `TASK`.
TASKS = {"pose": "fedgh_app.pose.task"}

# Leeds Sports Pose has the keypoints, the file and the metric of its extended set.
ALSO_CALLED = {"lsp": "lspet"}


def spec_names(directory: Path = DATASETS) -> list[str]:
    """Names of the data sets that are described, in alphabetical order."""
    return sorted(path.stem for path in directory.glob("*.yaml"))


def read_spec(name: str, directory: Path = DATASETS) -> tuple[Path, dict[str, Any]]:
    """The file that describes a data set, and what it holds; UserError where there is none, or it is no mapping."""
    known = spec_names(directory)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known
        raise UserError(f"dataset={name}: no such data set; expected one of {', '.join(near)}")
    path = directory / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping, found {type(values).__name__}")
    return path, values


def task_name(name: str) -> str:
    """The task that a data set, by any name, is for; UserError where it does not say."""
    path, values = read_spec(ALSO_CALLED.get(name, name))
    if values.get("task") not in TASKS:
        raise UserError(f"{path}: task={values.get('task')!r}, expected one of {', '.join(TASKS)}")
    return str(values["task"])


def package_of(task: str) -> str:
    """The package of a task; the module of one that is no package."""
    return TASKS[task].rpartition(".")[0] or TASKS[task]


def module_of(task: str, name: str) -> ModuleType | None:
    """The module ``name`` of a task's package, for what is not to wait for torch; None where it has none."""
    package = package_of(task)
    there = package != TASKS[task] and importlib.util.find_spec(f"{package}.{name}")
    return importlib.import_module(f"{package}.{name}") if there else None
