"""What a run came to: its ``result.json`` as it is written, and a run that ended, read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from fedgh_app.runs import storage
from fedgh_app.runs.history import Round
from fedgh_app.runs.opening import read_config
from fedgh_app.runs.schema import checked

if TYPE_CHECKING:
    from fedgh_app.server.federation import Federation

# What a report needs of a config.
GROUPS = ("dataset", "strategy", "runtime")
WORDS = ("dataset.spec", "strategy._target_", "runtime.name")
NUMBERS = ("seed", "rounds")

# What is read of these files, which may hold more. They may be damaged, or of another version.
_Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]  # a mean of ones may be a little above
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]


class _Rejected(TypedDict):
    round: int
    client: str
    reason: str


class _Client(TypedDict):
    label: str


class _Privacy(TypedDict):
    epsilon: NotRequired[_Seconds | None]


class _Taken(TypedDict):
    rounds: _Seconds


class _Result(TypedDict):
    pck: _Share | None
    per_keypoint: dict[str, _Share | None]
    evaluated: Literal["central", "clients"]
    rounds: int
    seconds: _Taken
    rejected: list[_Rejected]
    heatmap_accuracy: NotRequired[_Share | None]
    clients: NotRequired[dict[str, _Client]]
    clients_pck: NotRequired[dict[str, _Share | None]]
    privacy: NotRequired[_Privacy | None]


class _Found(TypedDict):
    pck: NotRequired[_Share | None]


class _FoundByClients(_Found):
    weighted: NotRequired[_Found]


class _Evaluation(TypedDict):
    central: NotRequired[_Found]
    clients: NotRequired[_FoundByClients]


class _Diagnostics(TypedDict):
    clients: NotRequired[list[str]]
    cosines: NotRequired[list[list[_Cosine | None]] | None]


def _square(found: _Diagnostics) -> _Diagnostics:
    """Refuse a matrix of cosines that is not one row and one column for each client."""
    names, cosines = found.get("clients") or [], found.get("cosines") or []
    if cosines and {len(cosines), *map(len, cosines)} != {len(names)}:
        raise ValueError(f"cosines: expected one row and one column for each of {len(names)} clients")
    return found


class _Line(TypedDict):
    round: int
    seconds: dict[str, _Seconds]
    evaluate: _Evaluation
    strategy: Annotated[_Diagnostics, AfterValidator(_square)]


_RESULT, _LINE = TypeAdapter(_Result), TypeAdapter(_Line)


def read_result(file: Path) -> dict[str, Any]:
    """The content of a ``result.json``; UserError where it is damaged."""
    return checked(_RESULT, storage.read_json(file), file, "the result of a run")


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
    result: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path) -> Outcome:
        """That of a run directory; UserError where a file of it is damaged."""
        config = read_config(directory, GROUPS, WORDS, NUMBERS)
        result = read_result(directory / "result.json")
        values = _flat(OmegaConf.to_container(config))
        # Null says as many as there are; a run that was resumed has their number.
        values["num_clients"] = values.get("num_clients") or len(result.get("clients", ())) or None
        return cls(directory, config, values, result)

    def history(self) -> list[dict[str, Any]]:
        """The lines of its ``history.jsonl``; none where clients trained alone. UserError where damaged."""
        file = self.directory / "history.jsonl"
        return [checked(_LINE, line, file, "a run's history") for line in storage.read_lines(file)]

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
    last = run.history[-1] if run.history else Round(round=0)
    measured, clients = last.evaluate.headline, last.evaluate.clients
    return {
        "metric": run.headline,
        "score": measured.score,
        "parts": measured.parts,
        "evaluated": "central" if last.evaluate.central else "clients",
        "rounds": last.round,
        "seconds": run.seconds(),
        "rejected": [item.model_dump() for one in run.history for item in one.rejected],
        "before": run.history[0].evaluate.headline.parts if run.history else {},
        "more": measured.more,
        "privacy": last.privacy,
        "clients": {
            name: {"label": info.label, "examples": info.examples, "test_examples": info.test_examples}
            for name, info in run.clients.items()
        },
        "clients_score": {name: one.score for name, one in clients.by_client.items()} if clients else {},
        "dataset": run.spec.name,
        "pck": measured.score,
        "per_keypoint": measured.parts,
    }
