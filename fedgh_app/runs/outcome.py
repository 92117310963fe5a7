"""A run that ended, read again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedgh_app.resources import Values
from fedgh_app.runs.history import Round, read_history
from fedgh_app.runs.opening import read_config
from fedgh_app.runs.result import Result

# What a report needs of a config.
GROUPS = ("dataset", "strategy", "runtime")
WORDS = ("dataset.spec", "strategy._target_", "runtime.name")
NUMBERS = ("seed", "rounds")


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
        config = read_config(directory, GROUPS, WORDS, NUMBERS)
        result = Result.read(directory)
        values = _flat(config)
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


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix.rstrip("."): tree}
    return {key: value for name, item in tree.items() for key, value in _flat(item, f"{prefix}{name}.").items()}
