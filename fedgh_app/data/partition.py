"""Which client holds which examples: Flower Datasets' partitioners over a data set.

Importing Flower Datasets takes seconds, so a partition is computed once, by the launcher or the server, and written to
disk; clients only read the file.
"""

import contextlib
import functools
import hashlib
import io
import json
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.resources import Values
from fedgh_app.runs.storage import read_json, write_json
from fedgh_app.task import Examples


@dataclass(frozen=True)
class Partition:
    """The crops of each client, as indices into the crop cache."""

    labels: tuple[str, ...]  # for people: an attribute's value, or ``client 3``; see also `labelled`
    train: tuple[tuple[int, ...], ...]  # training crops of each client
    test: tuple[tuple[int, ...], ...]  # test crops of each client, dealt in the proportions of its training crops


@dataclass(frozen=True, eq=False)
class Partitioning:
    """How a data set is dealt out."""

    make: Callable[..., Any]  # Flower Datasets' partitioner of these arguments
    by: str | None  # the attribute that it parts by; None for none
    takes_number: bool  # whether it is told the number of clients; otherwise the attribute's values fix it
    settings: Values  # all that the partition depends on beside the data, the number of clients and the seed
    seed: int  # of the order in which examples are dealt
    directory: Path  # where partitions are kept

    @property
    def natural(self) -> bool:
        """Whether there is a client for each value of an attribute."""
        return self.by is not None and not self.takes_number

    def natural_size(self, examples: Examples) -> int | None:
        """The number of clients that the partition itself fixes, or None where any number will do."""
        return len(set(self._values(examples)[examples.indices("train")])) if self.natural else None

    def deal(self, examples: Examples, num_clients: int) -> Partition:
        """The partition, read from disk where it was computed before; UserError where it cannot be made."""
        path = self._file(examples, num_clients)
        if path.exists():
            return load(path)
        made = self._compute(examples, num_clients)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"labels": made.labels, "train": made.train, "test": made.test})
        return made

    def stored(self, examples: Examples, num_clients: int) -> Partition:
        """The partition that `deal` has written, without importing Flower Datasets; UserError where there is none."""
        path = self._file(examples, num_clients)
        if not path.exists():
            raise UserError(f"{path}: this partition was never computed; expected the server to make it first")
        return load(path)

    def _file(self, examples: Examples, num_clients: int) -> Path:
        described = {
            "crops": examples.fingerprint,
            "partition": dict(self.settings),
            "num_clients": num_clients,
            "seed": self.seed,
            "version": 1,
        }
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        return self.directory / f"{examples.spec.name}-{digest}.json"

    def _values(self, examples: Examples) -> np.ndarray:
        """Value of the attribute for each example, (N,) of str; one value for all where none is used."""
        if self.by is None:
            return np.full(len(examples.ids), "all")
        if self.by not in examples.attributes:
            known = ", ".join(sorted(examples.attributes)) or "none"
            raise UserError(
                f"partition.partition_by={self.by}: data set {examples.spec.name} records no such attribute; "
                f"it has: {known}"
            )
        return np.asarray(examples.attributes[self.by])

    def _compute(self, examples: Examples, num_clients: int) -> Partition:
        from datasets import Dataset  # type: ignore[attr-defined]  # mypy finds this project's folder of that name

        train = examples.indices("train")
        if len(train) < num_clients:
            raise UserError(f"num_clients={num_clients}: {examples.spec.name} has only {len(train)} training images")
        values = self._values(examples)
        # Partitioners cut in order; the order of a file is never random.
        order = np.random.default_rng(self.seed).permutation(train)
        columns = {"index": order.tolist()}
        if self.by:
            columns[self.by] = values[order].tolist()
        partitioner = self.make(**({"num_partitions": num_clients} if self.takes_number else {}))
        partitioner.dataset = Dataset.from_dict(columns)
        parts = _cut(partitioner, num_clients)
        labels = [f"client {i}" for i in range(num_clients)]
        if self.natural:
            labels = [str(values[part[0]]) for part in parts]
            by_label = sorted(range(num_clients), key=labels.__getitem__)
            labels, parts = [labels[i] for i in by_label], [parts[i] for i in by_label]
        for label, part in zip(labels, parts, strict=True):
            if not part:
                raise UserError(f"partition: {label} holds no training image; expected at least 1 for each client")
        return Partition(tuple(labels), tuple(map(tuple, parts)), _deal_test(examples, values, parts))


def labelled(parts: Partition, member: str) -> Partition:
    """``parts`` with labels that also tell which of several data sets it is: ``arm front``, ``lspet 2``."""
    if len(parts.labels) == 1:
        return replace(parts, labels=(member,))
    return replace(parts, labels=tuple(f"{member} {label.removeprefix('client ')}" for label in parts.labels))


@functools.lru_cache(maxsize=8)
def load(path: Path) -> Partition:
    """Read a partition file, which never changes, as its name tells all; UserError where it holds something else."""
    content = read_json(path)
    try:
        labels = tuple(map(str, content["labels"]))
        train, test = (tuple(tuple(map(int, part)) for part in content[side]) for side in ("train", "test"))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: not a partition; remove it, and it is made anew") from None
    if not len(labels) == len(train) == len(test):
        raise UserError(f"{path}: found {len(labels)} labels of {len(train)} and {len(test)} parts, expected one each")
    return Partition(labels, train, test)


def _cut(partitioner: Any, num_clients: int) -> list[list[int]]:
    """Crop indices of each partition; UserError where Flower Datasets refuses or makes another number of them."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            # Its progress bars are over before they can be read.
            # Each of ten attempts at a Dirichlet partition warns in a paragraph; the failure of all is an error.
            warnings.simplefilter("ignore", UserWarning)
            found = partitioner.num_partitions
            if found == num_clients:
                return [sorted(partitioner.load_partition(i)["index"]) for i in range(num_clients)]
    except (ValueError, RuntimeError) as error:
        raise UserError(f"partition: {str(error).splitlines()[0]}") from None
    raise UserError(
        f"num_clients={num_clients}: this partition makes {found} clients; expected num_clients={found}, "
        f"or --federation-config num-supernodes={found} with flwr run"
    )


def _deal_test(examples: Examples, values: np.ndarray, parts: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    """Test crops dealt by largest remainder, value by value, in proportion to the clients' training crops of it."""
    dealt: list[list[int]] = [[] for _ in parts]
    test = examples.indices("test")
    held = [Counter(values[part].tolist()) for part in parts]
    for value in sorted(set(values[test].tolist())):
        crops = test[values[test] == value]
        counts = np.array([client[value] for client in held], dtype=float)
        if counts.sum() == 0:
            counts = np.array([len(part) for part in parts], dtype=float)
        share = counts / counts.sum() * len(crops)
        size = np.floor(share).astype(int)
        short = np.argsort(-(share - size), kind="stable")[: len(crops) - size.sum()]
        size[short] += 1
        for client, piece in enumerate(np.split(crops, np.cumsum(size)[:-1])):
            dealt[client].extend(int(i) for i in piece)
    return tuple(tuple(sorted(part)) for part in dealt)
