from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.config.compose import compose_config
from fedgh_app.data import partition
from fedgh_app.data.federated import DataSet
from fedgh_app.errors import UserError

CHOICES = ["natural", "iid", "dirichlet", "shard", "size_skewed"]


def parted(*overrides: str) -> DataSet:
    return ClientAssembly(compose_config(["dataset.input_size=[32,32]", *overrides])).data.only


def made(overrides: list[str], clients: int) -> tuple[partition.Partition, object]:
    data = parted(*overrides)
    assert data.partitioning is not None
    return data.partitioning.deal(data.examples, clients), data.examples


@pytest.mark.parametrize("choice", CHOICES)
def test_every_image_has_one_owner(home: Path, choice: str) -> None:
    parts, cache = made([f"partition={choice}"], 4)
    train = sorted(i for part in parts.train for i in part)
    test = sorted(i for part in parts.test for i in part)
    assert train == cache.indices("train").tolist()
    assert test == cache.indices("test").tolist()
    assert all(parts.train)


def test_a_natural_client_holds_one_viewpoint(home: Path) -> None:
    parts, cache = made(["partition=natural"], 4)
    assert parts.labels == tuple(sorted(set(cache.attributes["viewpoint"])))
    for label, train, test in zip(parts.labels, parts.train, parts.test, strict=True):
        assert set(cache.attributes["viewpoint"][[*train, *test]]) == {label}


def test_any_recorded_attribute_parts(home: Path) -> None:
    parts, _ = made(["partition=natural", "partition.partition_by=posture"], 2)
    assert parts.labels == ("extended", "upright")


def test_a_small_alpha_skews_more_than_a_large_one(home: Path) -> None:
    def unevenness(alpha: float) -> float:
        parts, cache = made(["partition=dirichlet", f"partition.alpha={alpha}"], 2)
        shares = [Counter(cache.attributes["viewpoint"][list(part)].tolist()) for part in parts.train]
        values = set(shares[0]) | set(shares[1])
        return sum(abs(shares[0][value] - shares[1][value]) for value in values)

    assert unevenness(0.1) > unevenness(1000.0)


def test_sizes_grow(home: Path) -> None:
    parts, _ = made(["partition=size_skewed"], 4)
    sizes = [len(part) for part in parts.train]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]


def test_a_client_is_tested_on_the_mix_that_it_trains_on(home: Path) -> None:
    parts, cache = made(["partition=shard", "partition.num_shards_per_partition=1"], 4)
    for train, test in zip(parts.train, parts.test, strict=True):
        assert set(cache.attributes["viewpoint"][list(test)]) <= set(cache.attributes["viewpoint"][list(train)])


def test_the_seed_changes_who_holds_what_but_never_what_is_held_out(home: Path) -> None:
    first, cache = made(["partition=iid", "seed=1"], 4)
    second, _ = made(["partition=iid", "seed=2"], 4)
    assert first.train != second.train
    held_out = [sorted(index for part in parts.test for index in part) for parts in (first, second)]
    assert held_out[0] == held_out[1] == cache.indices("test").tolist()


def test_it_is_computed_once_and_read_by_clients(home: Path) -> None:
    data = parted("partition=iid", "seed=77")
    assert data.partitioning is not None
    with pytest.raises(UserError, match="never computed"):
        data.partitioning.stored(data.examples, 3)
    parts = data.partitioning.deal(data.examples, 3)
    assert data.partitioning.stored(data.examples, 3) == parts


@pytest.mark.parametrize(
    ("overrides", "clients", "words"),
    [
        (["partition=natural"], 3, ["makes 4 clients", "num-supernodes=4"]),
        (["partition=natural", "partition.partition_by=weather"], 4, ["weather", "posture, viewpoint"]),
        (["partition=iid"], 1000, ["num_clients=1000", "training images"]),
        (["partition=dirichlet", "partition.min_partition_size=60"], 4, ["partition:"]),
    ],
)
def test_what_cannot_be_parted_is_one_line(home: Path, overrides: list[str], clients: int, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        made(overrides, clients)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
