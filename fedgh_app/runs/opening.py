"""A finished run, opened again: what it came to (`Outcome`), and its trained model (`load_run`)."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from fedgh_app.config import instantiation
from fedgh_app.config.choices import groups, keeps_nothing
from fedgh_app.errors import UserError, abbreviated, first_line
from fedgh_app.runs.directory import CONFIG, MODEL
from fedgh_app.runs.history import Round, read_history
from fedgh_app.runs.result import RESULT, Result
from fedgh_app.runs.storage import flat, load_model
from fedgh_app.task import Trained, Values, task_of

# What a report needs of a config, and what a model is built from again: groups, words and whole numbers.
OF_REPORTS = (
    ("dataset", "strategy", "runtime"),
    ("dataset.spec", "strategy._target_", "runtime.name"),
    ("seed", "rounds"),
)
OF_MODELS = (
    ("model", "dataset", "loss", "evaluate", "sharing", "clustering"),
    ("model._target_", "dataset.spec", "loss._target_", "sharing._target_"),
    ("seed", "batch_size"),
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """A run that ended."""

    directory: Path
    config: Values
    values: Values  # the same, flat: ``{"strategy.seed": 0}``
    result: Result

    @classmethod
    def read(cls, directory: Path) -> Self:
        """That of a run directory; UserError where a file of it is damaged."""
        config = read_config(directory, *OF_REPORTS)
        result = Result.read(directory)
        values = flat(config)
        # Null says as many as there are; a run that was resumed has their number.
        values["num_clients"] = values.get("num_clients") or len(result.clients) or None
        return cls(directory, config, values, result)

    def history(self) -> list[Round]:
        """What happened in each of its rounds; nothing where clients trained alone. UserError where damaged."""
        return read_history(self.directory)

    def seeds(self) -> dict[str, Any]:
        """Everything in the config that is a seed."""
        return {key: value for key, value in self.values.items() if is_seed(key)}


def is_seed(key: str) -> bool:
    """Whether a key of a config, with those above it, is a seed."""
    return key.rpartition(".")[2] == "seed"


def load_run(path: Path | str) -> Trained:
    """Open a run directory, or one of several models in it by its file; UserError where it holds no whole model."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such run directory")
    directory = path if path.is_dir() else _directory_of(path)
    values = read_config(directory, *OF_MODELS)
    file = path if path.is_file() else directory / MODEL
    if not keeps_nothing(values):
        sharing = values["sharing"]["_target_"].rpartition(".")[2].lower()
        raise UserError(
            f"{directory}: each client of this run kept a part of the model (sharing={sharing}), so no file in it "
            f"holds a whole one; what each reached is in its {RESULT}, and a run with sharing=all has a model"
        )
    if not file.exists():
        raise UserError(f"{file}: no such file; {_instead(directory)}")
    state, metadata = load_model(file)
    name = str(metadata.get("dataset", values["dataset"]["spec"]))
    task = task_of(name)
    spec = task.load_spec(name)
    task.check_opened(values, directory / CONFIG)
    network = dict(values["model"])
    if "weights" in network:
        network["weights"] = None  # where the backbone started matters no more, and may be gone
    with torch.random.fork_rng(devices=[]):
        model = instantiation.build_model(network, task, spec)
    _load(model, state, file)
    loss = instantiation.instantiate(values["loss"], "loss", task.builds["loss"])
    return Trained(directory, file, task, spec, model.eval(), loss, values, metadata)


def _directory_of(file: Path) -> Path:
    """The run directory of a model file: beside it, or above its ``checkpoints/``."""
    folders = [folder for folder in (file.parent, file.parent.parent) if (folder / CONFIG).is_file()]
    if not folders:
        raise UserError(f"{file}: no {CONFIG} beside it; expected a run directory, or a model in one")
    return folders[0]


def read_config(directory: Path, held: Sequence[str], words: Sequence[str], numbers: Sequence[str]) -> Values:
    """A run's config, with the groups ``held``, text in ``words`` and whole numbers in ``numbers``; else UserError."""
    file = directory / CONFIG
    if not file.is_file():
        raise UserError(f"{directory}: holds no {CONFIG}; expected a run directory, as fedgh run writes it")
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); expected the config of a run") from None
    missing = [key for key in (*held, *numbers) if not isinstance(config, dict) or key not in config]
    if missing:
        raise UserError(f"{file}: has no {', '.join(missing)}; expected the config of a run")
    for key, node in config.items():
        if key in (*held, *groups()) and not isinstance(node, dict):
            raise UserError(f"{file}: {key}: found {node}, expected a group of values")
    for keys, kind, name in ((words, str, "a word"), (numbers, int, "a whole number")):
        for key in keys:
            value = functools.reduce(lambda node, part: node.get(part), key.split("."), config)
            if not isinstance(value, kind):
                raise UserError(f"{file}: {key}: found {value}, expected {name}")
    return config


def _instead(directory: Path) -> str:
    """What a directory without a model of its own has: clusters' models, or those of clients that trained alone."""
    found = sorted(file.relative_to(directory) for file in directory.rglob("model*.safetensors"))
    if not found:
        return "expected a run that ended, or whose last good model was written when it failed"
    names = [str(name) if name.parent == Path() else str(name.parent) for name in found]
    return f"this run has several models; expected one of {abbreviated([str(directory / n) for n in names], most=4)}"


def _load(model: nn.Module, state: Mapping[str, torch.Tensor], file: Path) -> None:
    own = model.state_dict()
    for key in [*own, *state]:
        found = tuple(state[key].shape) if key in state else "nothing"
        expected = tuple(own[key].shape) if key in own else "nothing"
        if found != expected:
            raise UserError(f"{file}: found {key} of shape {found}, expected {expected}, as {CONFIG} says of the model")
    model.load_state_dict(dict(state))
