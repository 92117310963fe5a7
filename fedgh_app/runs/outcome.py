"""What a run came to: its ``result.json`` as it is written, and a run that ended, read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ValidationError

from fedgh_app.errors import UserError
from fedgh_app.runs import storage
from fedgh_app.runs.history import Round
from fedgh_app.runs.opening import read_config
from fedgh_app.runs.result import Result

if TYPE_CHECKING:
    from fedgh_app.server.federation import Federation

T = TypeVar("T", bound=BaseModel)

# What a report needs of a config.
GROUPS = ("dataset", "strategy", "runtime")
WORDS = ("dataset.spec", "strategy._target_", "runtime.name")
NUMBERS = ("seed", "rounds")


def _checked(kind: type[T], content: dict[str, Any], file: Path, what: str) -> T:
    try:
        return kind.model_validate(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(" ".join(f"{file}: {place}: {first['msg']}; expected {what}".split())) from None


@dataclass(frozen=True, eq=False)
class Outcome:
    """A run that ended.

    Attributes:
        directory: its run directory.
        config: its config.
        values: the same, flat: ``{"strategy.seed": 0}``.
        result: its ``result.json``.
    """

    directory: Path
    config: DictConfig
    values: Mapping[str, Any]
    result: Result

    @classmethod
    def read(cls, directory: Path) -> Outcome:
        """That of a run directory; UserError where a file of it is damaged."""
        config = read_config(directory, GROUPS, WORDS, NUMBERS)
        result = Result.read(directory)
        values = _flat(OmegaConf.to_container(config))
        # Null says as many as there are; a run that was resumed has their number.
        values["num_clients"] = values.get("num_clients") or len(result.clients) or None
        return cls(directory, config, values, result)

    def history(self) -> list[Round]:
        """The lines of its ``history.jsonl``; none where clients trained alone. UserError where damaged."""
        file = self.directory / "history.jsonl"
        return [_checked(Round, line, file, "a run's history") for line in storage.read_lines(file)]

    def seeds(self) -> dict[str, Any]:
        """Everything in the config that is a seed."""
        return {key: value for key, value in self.values.items() if is_seed(key)}


def is_seed(key: str) -> bool:
    """Whether a key of a config, with those above it, is a seed."""
    return key.rpartition(".")[2] == "seed"


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix.rstrip("."): tree}
    return {key: value for name, item in tree.items() for key, value in _flat(item, f"{prefix}{name}.").items()}


def headline(evaluate: Mapping[str, Any]) -> dict[str, Any]:
    """What counts of a round's evaluation: the server's own, else the clients', weighted by their test images."""
    clients = evaluate.get("clients") or {}
    return dict(evaluate.get("central") or {**clients, **clients.get("weighted", {})})


def result_of(run: Federation) -> dict[str, Any]:
    """What ``result.json`` says of a run, as far as it came.

    The headline is central where the server saw test images, else the clients' own.
    """
    last = run.history[-1].evaluate if run.history else {}
    found = headline(last)
    return {
        "pck": found.get("pck"),
        "per_keypoint": found.get("per_keypoint", {}),
        "evaluated": "central" if "central" in last else "clients",
        "rounds": run.history[-1].round if run.history else 0,
        "seconds": run.seconds(),
        "rejected": [item for this in run.history for item in this.rejected],
        "before": headline(run.history[0].evaluate).get("per_keypoint", {}) if run.history else {},
        "heatmap_accuracy": found.get("heatmap_accuracy"),
        "auc": found.get("auc"),
        "privacy": run.history[-1].privacy if run.history else {},
        "clients": {
            name: {"label": info.label, "examples": info.examples, "test_examples": info.test_examples}
            for name, info in run.clients.items()
        },
        "clients_pck": {name: values["pck"] for name, values in last.get("clients", {}).get("by_client", {}).items()},
        "dataset": run.config.dataset.spec,
    }
