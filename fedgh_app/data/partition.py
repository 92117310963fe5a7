"""Which client holds which images: Flower Datasets' partitioners over the crops of a data set.

Importing Flower Datasets takes seconds, so a partition is computed once, by the launcher or the server, and written to
disk; clients only read the file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from fedgh_app.config.compose import fedgh_home
from fedgh_app.config.instantiation import instantiate
from fedgh_app.pose.data.cache import CropCache
from fedgh_app.errors import UserError
from fedgh_app.runs.storage import read_json, write_json


@dataclass(frozen=True)
class Partition:
    """The crops of each client, as indices into the crop cache.

    Attributes:
        labels: what each client holds, for people: an attribute's value, or ``client 3``; see also `labelled`.
        train: training crops of each client.
        test: test crops of each client, dealt in the proportions of its training crops.
    """

    labels: tuple[str, ...]
    train: tuple[tuple[int, ...], ...]
    test: tuple[tuple[int, ...], ...]

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return len(self.train)


@dataclass(frozen=True)
class Dealt:
    """One data set of a federation, and who holds what of it.

    Attributes:
        config: the config of a federation of this data set alone.
        cache: its crops.
        parts: the crops of each of its clients.
    """

    config: DictConfig
    cache: CropCache
    parts: Partition


def held(dealt: Mapping[str, Dealt]) -> tuple[list[Counter[str]], list[str], str | None]:
    """Of each client of a federation how many crops of each attribute value it holds, its label, and the attribute.

    Of a data set without an attribute its name counts; of several data sets no one attribute does.
    """
    counts = [
        holdings(one.config, one.cache, part) or Counter({member: len(part)})
        for member, one in dealt.items()
        for part in one.parts.train
    ]
    attributes = [attribute_of(one.config, one.cache) for one in dealt.values()]
    labels = [label for one in dealt.values() for label in one.parts.labels]
    return counts, labels, attributes[0] if len(attributes) == 1 else None


def natural_size(config: DictConfig, cache: CropCache) -> int | None:
    """The number of clients that the partition itself fixes, or None where any number will do."""
    if not is_natural(config):
        return None
    return len(set(_attribute(config, cache)[cache.indices("train")]))


def attribute_of(config: DictConfig, cache: CropCache) -> str | None:
    """The attribute that a data set is parted by, or naturally is; None where it records none."""
    name = config.partition.get("partition_by") or config.dataset.natural_attribute
    return name if name in cache.attributes else None


def holdings(config: DictConfig, cache: CropCache, part: Sequence[int]) -> Counter[str]:
    """How many crops of each attribute value a client holds; empty without an attribute."""
    name = attribute_of(config, cache)
    return Counter() if name is None else Counter(cache.attributes[name][list(part)].tolist())


def contents(config: DictConfig, cache: CropCache, part: Sequence[int]) -> str:
    """What a client holds, as ``left 12, top 40``; empty without an attribute."""
    return ", ".join(f"{value} {count}" for value, count in sorted(holdings(config, cache, part).items()))


def number_of_clients(config: DictConfig, cache: CropCache) -> int:
    """``num_clients``, else what the partition itself fixes, else the runtime's default."""
    return int(config.num_clients or natural_size(config, cache) or config.runtime.get("num_supernodes", 4))


def is_natural(config: DictConfig) -> bool:
    """Whether a client is made for each value of an attribute."""
    return str(config.partition._target_).endswith("NaturalIdPartitioner")


def partition(config: DictConfig, cache: CropCache, num_clients: int) -> Partition:
    """The partition of ``cache`` among ``num_clients``, read from disk where it was computed before.

    Raises:
        UserError: it cannot be made (an unknown attribute, another number of clients, a client without data).
    """
    path = _path(config, cache, num_clients)
    if path.exists():
        return load(path)
    made = _compute(config, cache, num_clients)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"labels": made.labels, "train": made.train, "test": made.test})
    return made


def labelled(parts: Partition, member: str) -> Partition:
    """``parts`` with labels that also tell which of several data sets it is: ``arm front``, ``lspet 2``."""
    if parts.num_clients == 1:
        return replace(parts, labels=(member,))
    return replace(parts, labels=tuple(f"{member} {label.removeprefix('client ')}" for label in parts.labels))


def stored(config: DictConfig, cache: CropCache, num_clients: int) -> Partition:
    """The partition that `partition` has written, without importing Flower Datasets.

    Raises UserError where nobody has computed it.
    """
    path = _path(config, cache, num_clients)
    if not path.exists():
        raise UserError(f"{path}: this partition was never computed; expected the server to make it first")
    return load(path)


@functools.lru_cache(maxsize=8)
def load(path: Path) -> Partition:
    """Read a partition file, which never changes: its name tells all that it depends on.

    Raises UserError where it holds something else.
    """
    content = read_json(path)
    try:
        labels = tuple(map(str, content["labels"]))
        train, test = (tuple(tuple(map(int, part)) for part in content[side]) for side in ("train", "test"))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: not a partition; remove it, and it is made anew") from None
    if not len(labels) == len(train) == len(test):
        raise UserError(f"{path}: found {len(labels)} labels of {len(train)} and {len(test)} parts, expected one each")
    return Partition(labels, train, test)


def _path(config: DictConfig, cache: CropCache, num_clients: int) -> Path:
    settings: dict[Any, Any] = OmegaConf.to_container(config.partition)  # type: ignore[assignment]  # a dict of it is a dict
    described = {
        "crops": cache.fingerprint,
        # num_partitions only repeats num_clients, which the launcher knows before the config says it.
        "partition": {key: value for key, value in settings.items() if key != "num_partitions"},
        "num_clients": num_clients,
        "seed": config.seed,
        "version": 1,
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    return fedgh_home() / "cache" / "partitions" / f"{config.dataset.spec}-{digest}.json"


def _attribute(config: DictConfig, cache: CropCache) -> np.ndarray:
    """Value of the partition's attribute for each crop, (N,) of str; one value for all where it uses none."""
    name = config.partition.get("partition_by")
    if name is None:
        return np.full(len(cache.ids), "all")
    if name not in cache.attributes:
        known = ", ".join(sorted(cache.attributes)) or "none"
        raise UserError(
            f"partition.partition_by={name}: data set {config.dataset.spec} records no such attribute; it has: {known}"
        )
    return np.asarray(cache.attributes[name])


def _compute(config: DictConfig, cache: CropCache, num_clients: int) -> Partition:
    from datasets import Dataset  # type: ignore[attr-defined]  # mypy finds this project's folder of that name

    train = cache.indices("train")
    if len(train) < num_clients:
        raise UserError(f"num_clients={num_clients}: {config.dataset.spec} has only {len(train)} training images")
    values = _attribute(config, cache)
    # Partitioners cut in order; the order of a file is never random.
    order = np.random.default_rng(config.seed).permutation(train)
    columns: dict[str, Any] = {"index": order.tolist()}
    if by := config.partition.get("partition_by"):
        columns[by] = values[order].tolist()
    arguments = {"num_partitions": num_clients} if "num_partitions" in config.partition else {}
    partitioner = instantiate(config.partition, "partition", **arguments)
    partitioner.dataset = Dataset.from_dict(columns)
    parts = _cut(partitioner, num_clients)
    labels = [f"client {i}" for i in range(num_clients)]
    if is_natural(config):
        labels = [str(values[part[0]]) for part in parts]
        by_label = sorted(range(num_clients), key=labels.__getitem__)
        labels, parts = [labels[i] for i in by_label], [parts[i] for i in by_label]
    for label, part in zip(labels, parts, strict=True):
        if not part:
            raise UserError(f"partition: {label} holds no training image; expected at least 1 for each client")
    return Partition(tuple(labels), tuple(map(tuple, parts)), _deal_test(cache, values, parts))


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


def _deal_test(cache: CropCache, values: np.ndarray, parts: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    """Deal the test crops so that each client is tested on the mix that it trains on.

    The crops of each attribute value are dealt in proportion to the clients' training crops of that value, by largest
    remainder, so that every test crop has one owner.
    """
    dealt: list[list[int]] = [[] for _ in parts]
    test = cache.indices("test")
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
