"""The data sets of a federation, and who holds what of them."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedgh_app.data.partition import Partition, Partitioning, labelled
from fedgh_app.errors import UserError
from fedgh_app.task import Examples, Spec, Task, Values

# Flower calls a ClientApp anew for every message: what was opened stays open in its process.
_OPENED: dict[tuple[str, Path, str, Path], Examples] = {}


@dataclass(frozen=True, eq=False)
class DataSet:
    """One data set of a federation."""

    task: Task  # what it is for
    spec: Spec  # what it is
    root: Path  # where it lies
    values: Values  # its ``dataset`` group
    directory: Path  # where what is prepared of it is kept
    partitioning: Partitioning | None = None  # how it is dealt out; None where every site holds its own
    num_clients: int | None = None  # how many hold it, where that is fixed

    @functools.cached_property
    def examples(self) -> Examples:
        """Its examples, opened once in this process with the same settings; UserError where data are missing or bad."""
        key = (self.spec.name, self.root, repr(sorted(self.values.items())), self.directory)
        if key not in _OPENED:
            while len(_OPENED) >= 8:
                del _OPENED[next(iter(_OPENED))]
            _OPENED[key] = self.task.open(self.spec, self.root, self.values, self.directory)
        return _OPENED[key]

    @property
    def attribute(self) -> str | None:
        """The attribute that it is parted by, or naturally is; None where it records none."""
        by = self.partitioning.by if self.partitioning is not None else None
        name = by or self.values["natural_attribute"]
        return name if name in self.examples.attributes else None

    def holdings(self, part: Sequence[int]) -> Counter[str]:
        """How many examples of each attribute value these are; empty without an attribute."""
        name = self.attribute
        return Counter() if name is None else Counter(self.examples.attributes[name][list(part)].tolist())

    def contents(self, part: Sequence[int]) -> str:
        """What these are, as ``left 12, top 40``; empty without an attribute."""
        return ", ".join(f"{value} {count}" for value, count in sorted(self.holdings(part).items()))

    def natural_size(self) -> int | None:
        """The number of clients that the partition fixes; None where any number will do."""
        if self.num_clients is not None or self.partitioning is None:
            return self.num_clients
        return self.partitioning.natural_size(self.examples)


@dataclass(frozen=True, eq=False)
class Dealt:
    """One data set of a federation, and the parts of its clients."""

    data: DataSet
    parts: Partition


@dataclass(frozen=True, eq=False)
class FederatedData:
    """The data sets of a federation; usually there is one.

    Several (``dataset=arm_lspet``) are parted one by one, each by its own natural attribute; a natural partition gives
    one client all of a data set that has none. Clients are numbered through in the order of the data sets.
    """

    name: str  # of the ``dataset`` group
    sets: Mapping[str, DataSet]  # by name
    num_clients: int | None = None  # in all; None for what the partitions fix, else the default
    default_clients: int = 4  # how many there are where nothing says
    speeds: Mapping[str, float] = field(default_factory=dict)  # by client, where its node config does not say

    @property
    def several(self) -> bool:
        """Whether each client has one of several data sets."""
        return len(self.sets) > 1

    @property
    def first(self) -> DataSet:
        """The data set; of several, the first."""
        return next(iter(self.sets.values()))

    @property
    def only(self) -> DataSet:
        """The data set, where there is one; UserError otherwise."""
        if self.several:
            raise UserError(
                f"dataset={self.name}: holds no images itself; expected one of its data sets: {', '.join(self.sets)}"
            )
        return self.first

    @property
    def held_by_sites(self) -> bool:
        """Whether every site holds its own data, and nobody deals them out."""
        return self.first.partitioning is None

    @property
    def headline(self) -> str:
        """Name of the headline metric; of data sets that differ in it, each one's."""
        return ", ".join(dict.fromkeys(one.spec.headline for one in self.sets.values()))

    def clients_of(self, num_clients: int | None = None) -> dict[str, int]:
        """How many clients hold each data set: of so many in all, else as the partitions fix it, else of the default.

        Raises UserError for another number than the partitions make, or fewer than there are data sets.
        """
        total = num_clients or self.num_clients
        if not self.several:
            return {name: total or one.natural_size() or self.default_clients for name, one in self.sets.items()}
        if all(one.natural_size() for one in self.sets.values()):
            counts = {name: one.natural_size() or 0 for name, one in self.sets.items()}
            made = sum(counts.values())
            if total not in (None, made):
                raise UserError(
                    f"num_clients={total}: this partition makes {made} clients; expected num_clients={made}"
                )
            return counts
        total = int(total or self.default_clients)
        if total < len(self.sets):
            raise UserError(
                f"num_clients={total}: expected at least {len(self.sets)}, one for each of {', '.join(self.sets)}"
            )
        each, rest = divmod(total, len(self.sets))
        return {name: each + (place < rest) for place, name in enumerate(self.sets)}

    def deal(self, num_clients: int) -> dict[str, Dealt]:
        """Who holds what of each data set; computed and kept where it is new, UserError where it cannot be."""
        dealt = {}
        for name, count in self.clients_of(num_clients).items():
            data = self.sets[name]
            assert data.partitioning is not None
            dealt[name] = Dealt(data, self._labelled(name, data.partitioning.deal(data.examples, count)))
        return dealt

    def part(self, number: int, num_clients: int) -> tuple[str, str, Sequence[int], Sequence[int]]:
        """Of client ``number``: its data set, its label, its training and its test examples, as they were dealt."""
        counts = self.clients_of(num_clients)
        name, index, count = [(n, i, count) for n, count in counts.items() for i in range(count)][number]
        data = self.sets[name]
        assert data.partitioning is not None
        parts = self._labelled(name, data.partitioning.stored(data.examples, count))
        return name, parts.labels[index], parts.train[index], parts.test[index]

    def _labelled(self, name: str, parts: Partition) -> Partition:
        return labelled(parts, name) if self.several else parts
