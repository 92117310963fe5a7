"""Several data sets in one federation: who holds which, and that a client sees no other."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from conftest import TINY
from omegaconf import DictConfig
from people import write_lspet

from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.assembly.server import Assembly
from fedgh_app.config.compose import absolute_paths, compose_config
from fedgh_app.config.site import SitePaths, bounded
from fedgh_app.data.site import open_site
from fedgh_app.errors import UserError
from fedgh_app.runtimes import baselines
from fedgh_app.server_app import draw_holdings

BOTH = ["dataset=arm_lspet", "sharing=fedpav", "evaluate.central_every=0", *TINY]


@pytest.fixture(scope="module")
def people(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lspet(tmp_path_factory.mktemp("people") / "lspet")


def both(people: Path, *overrides: str) -> DictConfig:
    return compose_config([*BOTH, f"dataset.members.lspet.root={people}", *overrides])


def test_each_data_set_is_a_federation_of_its_own(people: Path) -> None:
    config = both(people)
    alone = ClientAssembly(config).data.sets
    assert list(alone) == ["arm", "lspet"]
    assert [one.spec.name for one in alone.values()] == ["arm", "lspet"]
    assert [one.values["input_size"] for one in alone.values()] == [[32, 32], [32, 32]]
    assert alone["arm"].partitioning is not None and alone["arm"].partitioning.by == "viewpoint"
    assert config.partition.partition_by == "own"  # the run's config stays as it was
    assert list(ClientAssembly(compose_config([])).data.sets) == ["arm"]


def test_a_natural_partition_gives_one_client_all_of_a_set_without_an_attribute(people: Path) -> None:
    config = both(people)
    assert ClientAssembly(config).data.clients_of() == {"arm": 4, "lspet": 1}
    dealt = ClientAssembly(config).data.deal(5)
    assert dealt["arm"].parts.labels == ("arm front", "arm left", "arm right", "arm top")
    assert dealt["lspet"].parts.labels == ("lspet",)
    cache = dealt["lspet"].data.examples
    assert list(dealt["lspet"].parts.train[0]) == cache.indices("train").tolist()
    assert list(dealt["lspet"].parts.test[0]) == cache.indices("test").tolist()


def test_the_arms_are_parted_as_in_a_federation_of_arms_alone(people: Path) -> None:
    arms = compose_config(TINY)
    assert (
        ClientAssembly(both(people)).data.deal(5)["arm"].parts.train
        == ClientAssembly(arms).data.deal(4)["arm"].parts.train
    )


@pytest.mark.parametrize(("clients", "shares"), [(2, (1, 1)), (5, (3, 2)), (6, (3, 3))])
def test_other_partitions_share_the_clients_out_evenly(people: Path, clients: int, shares: tuple[int, int]) -> None:
    config = both(people, "partition=iid", f"num_clients={clients}")
    assert tuple(ClientAssembly(config).data.clients_of().values()) == shares
    dealt = ClientAssembly(config).data.deal(clients)
    labels = [label for one in dealt.values() for label in one.parts.labels]
    assert len(set(labels)) == clients
    for one in dealt.values():
        held = sorted(index for part in one.parts.train for index in part)
        assert held == one.data.examples.indices("train").tolist()


def test_a_client_opens_its_own_part(people: Path) -> None:
    config = both(people)
    dealt = ClientAssembly(config).data.deal(5)
    found = [open_site(ClientAssembly(config).data, {"partition-id": i, "num-partitions": 5}) for i in range(5)]
    assert [held.examples.spec.name for held in found] == ["arm"] * 4 + ["lspet"]
    assert [held.label for held in found] == ["arm front", "arm left", "arm right", "arm top", "lspet"]
    parts = [*dealt["arm"].parts.train, *dealt["lspet"].parts.train]
    assert [tuple(held.train) for held in found] == parts
    with pytest.raises(UserError, match=r"client 4: .*dataset=arm, but part 4 of the partition is of lspet"):
        open_site(ClientAssembly(config).data, {"partition-id": 4, "num-partitions": 5, "dataset": "arm"})


def test_a_node_with_its_own_data_says_which_set_they_are(people: Path) -> None:
    config = both(people, "partition=site", "dataset.members.lspet.root=/nowhere")
    node = {"name": "gym", "dataset": "lspet", "data-root": str(people), "speed": 0.5}
    held = open_site(ClientAssembly(bounded(config, SitePaths.of(node))).data, node)
    assert (held.name, held.examples.spec.name, held.speed) == ("gym", "lspet", 0.5)
    assert len(held.train) + len(held.test) == 40
    with pytest.raises(UserError, match=r"client gym: .*dataset=None; expected one of arm, lspet"):
        open_site(ClientAssembly(config).data, {"name": "gym"})


def test_a_client_is_as_fast_as_its_node_or_the_config_says(home: Path) -> None:
    config = compose_config([*TINY, "runtime=inprocess", "+runtime.speeds.1=0.1"])
    ClientAssembly(config).data.deal(4)
    node = {"num-partitions": 4}
    assert open_site(ClientAssembly(config).data, {**node, "partition-id": 0}).speed == 1.0
    assert open_site(ClientAssembly(config).data, {**node, "partition-id": 1}).speed == 0.1
    assert open_site(ClientAssembly(config).data, {**node, "partition-id": 1, "speed": 2}).speed == 2.0
    with pytest.raises(UserError, match="client 1: speed=0; expected a number above 0"):
        open_site(ClientAssembly(config).data, {**node, "partition-id": 1, "speed": 0})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["num_clients=3"], "num_clients=3: this partition makes 5 clients; expected num_clients=5"),
        (["partition=iid", "num_clients=1"], "num_clients=1: expected at least 2, one for each of arm, lspet"),
        (["partition.partition_by=posture"], "expected dataset.members.arm.natural_attribute=posture"),
        (["partition=dirichlet"], "dataset.members.lspet.natural_attribute=null"),
        (["dataset.members.lspet.root=/nowhere"], "dataset.root=/nowhere"),
    ],
)
def test_what_cannot_be_dealt_is_one_line(people: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        data = ClientAssembly(both(people, *overrides)).data
        data.deal(sum(data.clients_of().values()))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_there_are_no_crops_of_all(people: Path) -> None:
    with pytest.raises(UserError, match=r"dataset=arm_lspet: holds no images itself; .*arm, lspet"):
        _ = ClientAssembly(both(people)).data.only


def test_the_headline_names_every_metric_once(people: Path) -> None:
    assert ClientAssembly(both(people)).data.headline == "PCK@0.2"
    assert ClientAssembly(compose_config(["dataset=mpii", "partition=iid"])).data.headline == "PCKh@0.5"


def test_every_root_becomes_absolute(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(people.parent)
    config = both(people, "dataset.members.lspet.root=lspet")
    assert f"dataset.members.lspet.root='{people}'" in absolute_paths(config)
    assert any(item.startswith("dataset.root=") for item in absolute_paths(compose_config([])))


def test_no_single_model_is_trained_on_sets_with_different_keypoints(people: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runtime=centralised .*expected one of arm, lspet"):
        baselines.run_centralised(Assembly(both(people)), BOTH, tmp_path / "x", quiet=True)
    assert not (tmp_path / "x").exists()


def test_the_picture_shows_every_client_of_every_set(people: Path, tmp_path: Path) -> None:
    draw_holdings(ClientAssembly(both(people)).data.deal(5), tmp_path / "who.png", "arm_lspet")
    image = cv2.imread(str(tmp_path / "who.png")).astype(int)
    colours = {tuple(pixel) for pixel in image.reshape(-1, 3)[::7].tolist() if max(pixel) - min(pixel) > 40}
    assert len(colours) >= 5  # four viewpoints and the people
