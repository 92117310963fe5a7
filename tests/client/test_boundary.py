"""A site whose server is somebody else's: what it reads and writes, and what it tells."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm  # noqa: F401  # a server may ask for it, and its import makes temporary folders
import torch
from conftest import TINY
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from omegaconf import OmegaConf
from safetensors.torch import save_file
from watching import audited, watched

from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.client_app import app
from fedgh_app.config.compose import compose_config, join_overrides
from fedgh_app.config.site import SitePaths, bounded
from fedgh_app.data.site import Site, open_site
from fedgh_app.errors import UserError
from fedgh_app.grids.inprocess import InProcessGrid
from fedgh_app.pose.data.records import load_spec
from fedgh_app.resources import ROOT
from fedgh_app.runs.storage import save_config, save_model
from fedgh_app.vision.threads import usable_cores

BASE = [*TINY, "partition=site", "model=shufflenet_v2", "model.backbone=shufflenet_v2_x0_5", "model.head_width=8"]
FEDBN = "sharing=fedbn"


@functools.lru_cache
def arrays() -> ArrayRecord:
    state = ClientAssembly(compose_config(BASE)).build_model(load_spec("arm")).state_dict()
    return ArrayRecord({key: Array(value.numpy()) for key, value in state.items()})


@dataclass(frozen=True)
class Place:
    """A site, and what lies beside it on its machine."""

    data: Path
    home: Path
    outside: Path

    @property
    def node(self) -> dict[str, Any]:
        """Its node config."""
        return {"name": "clinic", "data-root": str(self.data), "dataset": "arm"}

    def error(
        self, overrides: Sequence[str], node: Mapping[str, Any], kind: str = MessageType.TRAIN, **config: Any
    ) -> str | None:
        """What the server is told when it sends a node a message of that kind; None for a good reply."""
        grid = InProcessGrid(app, [node], {"overrides": join_overrides([*BASE, *overrides])})
        content = RecordDict()
        if kind == MessageType.TRAIN:
            content["arrays"] = arrays()
            known = {"server-round": 1, "draw": 1, "acknowledged": 0, "settled": 0, "session": 0, "report": []}
            content["config"] = ConfigRecord({**known, "run": "0" * 32, **config})
        (reply,) = grid.send_and_receive([Message(content, 1, kind)])
        return reply.error.reason if reply.has_error() else None


@pytest.fixture(scope="module")
def place(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """What lies outside would do: images, a run with its model, weights of the backbone."""
    folder = tmp_path_factory.mktemp("machine")
    data, outside = folder / "data", folder / "outside"
    shutil.copytree(home / "data" / "arm", data)
    shutil.copytree(home / "data" / "arm", outside / "arm")
    config = compose_config(BASE)
    model = ClientAssembly(config).build_model(load_spec("arm"))
    for run in ("run", "teacher"):
        (outside / run).mkdir()
        save_config(outside / run, OmegaConf.to_container(config))
        described = {"model": config.model, "dataset": "arm", "rounds": 1}
        save_model(outside / run / "model.safetensors", model.state_dict(), **described)
    save_file(model.backbone.state_dict(), outside / "weights.safetensors")
    (outside / "strategy").mkdir()
    (outside / "strategy" / "other.yaml").write_text("_target_: strategies.FedAvg\n")
    (outside / "group").mkdir()
    (outside / "group" / "other.yaml").write_text("secret: 1\n")
    return Place(data, home, outside)


TAUGHT = ["teacher=hhd", "model.head=integral", "loss=integral"]

# Overrides (OUT is the folder outside), and what the server is told; None where training goes on with what is the
# site's own.
ATTACKS: list[tuple[list[str], str | None]] = [
    (["dataset.root=OUT/arm"], None),
    (["init=OUT/run"], None),
    (["resume=OUT/run"], None),
    (["run_dir=OUT/new", "runtime=inprocess", FEDBN], None),
    (["model.weights=OUT/weights.safetensors"], None),
    (["model.weights=OUT/weights.safetensors", FEDBN], "model.weights=OUT/weights.safetensors: a site reads no file"),
    (["model.weights=ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"], None),
    ([*TAUGHT, "teacher.run=OUT/teacher"], "teacher.run=null: expected a path, or a node config that says"),
    (["clustering=finch", "clustering.public.root=OUT/arm"], None),
    (["distillation=server", "distillation.public.root=OUT/arm"], None),
    (["dataset=arm_lspet", "dataset.members.arm.root=OUT/arm", "dataset.input_size=[32,32]", "sharing=fedpav"], None),
    (["hydra.searchpath=[file://OUT]", "+group=other"], "hydra.searchpath=[file://OUT]: Hydra's own settings stay"),
    (["model.backbone=${oc.env:FEDGH_TEST_SECRET}"], "Unsupported interpolation type oc.env"),
    (["+a='$'", "+b='{oc.env:FEDGH_TEST_SECRET}'", "model.backbone=${a}${b}"], "expected one to another key"),
    (["model.backbone=timm:local-dir:OUT/run"], "expected a model of timm"),
    (["model.backbone=timm:hf-hub:timm/resnet18.a1_in1k"], "expected a model of timm"),
    (["model._target_=torchvision.models.ResNet"], "expected a class under fedgh_app.pose"),
    (["partition=iid"], "its node config has no partition-id"),
]


@pytest.mark.parametrize(("overrides", "told"), ATTACKS, ids=lambda item: item[0] if isinstance(item, list) else "")
def test_a_site_reads_and_writes_nothing_outside(
    place: Place, overrides: list[str], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDGH_TEST_SECRET", "hunter2")
    overrides = [item.replace("OUT", str(place.outside)) for item in overrides]
    with watched(place.outside) as touched, audited() as (paths, others):
        said = place.error(overrides, place.node)
    if told is None:
        assert said is None
    else:
        assert said is not None and told.replace("OUT", str(place.outside)) in said
        assert "hunter2" not in said and "\n" not in said
    assert touched == []
    assert others == []
    own = [place.data, place.home, ROOT, sys.prefix, sys.base_prefix, torch.__path__[0], "/proc", "/sys", "/dev"]
    allowed = tuple(os.path.realpath(path) for path in own)
    assert [path for path in paths if not os.path.realpath(path).startswith(allowed)] == []


@pytest.mark.parametrize("overrides", [["dataset.root=OUT/arm"], ["model.weights=OUT/weights.safetensors"]])
def test_a_simulated_node_reads_what_the_config_names(place: Place, overrides: list[str]) -> None:
    """What the test above looks for would be seen, whichever language opens the file."""
    overrides = [item.replace("OUT", str(place.outside)) for item in overrides]
    with watched(place.outside) as touched:
        assert place.error(overrides, {"partition-id": 0, "num-partitions": 1}, MessageType.QUERY) is None
    assert any(name.endswith(("/annotations.json", "/weights.safetensors")) for name in touched)


def test_what_the_site_names_itself_is_read(place: Place) -> None:
    node = place.node | {"weights": str(place.outside / "weights.safetensors")}
    assert place.error(["model.weights=/nowhere", FEDBN], node) is None
    taught = bounded(
        compose_config([*BASE, *TAUGHT, "teacher.run=/nowhere"]), SitePaths.of({"teacher": "/models/teacher"})
    )
    assert taught.teacher.run == "/models/teacher"


def test_weights_of_the_site_start_no_run_that_starts_from_none() -> None:
    own = SitePaths("/data", weights="/data/resnet18.pth")
    assert bounded(compose_config(["model=mobilenet_v3_small"]), own).model.weights is None
    assert bounded(compose_config(["model.weights=a.pth"]), own).model.weights == own.weights


def test_a_node_of_a_site_has_a_data_root(place: Place) -> None:
    told = "client clinic: its node config has no data-root"
    assert told in str(place.error([], {"name": "clinic"}, MessageType.QUERY))


def test_a_data_root_that_is_not_there_is_told_to_the_site_alone(place: Place) -> None:
    missing = str(place.data / "gone")
    with pytest.raises(UserError, match=f"^data-root={re.escape(missing)}: no such directory"):
        open_site(ClientAssembly(compose_config(BASE)).data, {"name": "clinic", "data-root": missing})
    told = place.error([], {"name": "clinic", "data-root": missing}, MessageType.QUERY)
    assert told == "RunFailed: a file of the site cannot be used; its own log says which and why"


@pytest.mark.parametrize("run", ["../../outside", "0" * 31 + "/", "/etc", "0" * 31 + "\n"])
def test_the_id_of_a_run_leads_nowhere(place: Place, run: str) -> None:
    told = place.error([FEDBN], place.node, run=run)
    assert told is not None and "expected an id of 32 hexadecimal digits" in told


def test_the_name_of_a_client_leads_nowhere(place: Place) -> None:
    assert place.error([FEDBN], place.node | {"name": "../../../outside/clinic"}, run="1" * 32) is None
    (file,) = (place.home / "clients" / ("1" * 32)).iterdir()
    assert file.is_file() and not (place.outside / "clinic").exists()


def test_no_more_threads_than_the_site_has_cores() -> None:
    config = compose_config([*BASE, "runtime.client_cpus=100000"])
    assert bounded(config, SitePaths("/data")).runtime.client_cpus == usable_cores()
    assert bounded(config, SitePaths()).runtime.client_cpus == 100000
    deployed = compose_config([*BASE, "runtime=deployment"])
    assert bounded(deployed, SitePaths("/data")).runtime.client_cpus == usable_cores()


def test_the_server_learns_no_name_of_a_file(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.data, tmp_path / "data")
    content = json.loads((tmp_path / "data" / "annotations.json").read_text())
    content["images"][0]["file_name"] = "jane-doe-1970.jpg"
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(content))
    told = place.error([], {"name": "clinic", "data-root": str(tmp_path / "data")}, MessageType.QUERY)
    assert told == "RunFailed: a file of the site cannot be used; its own log says which and why"
    (tmp_path / "data" / "images" / "jane-doe-1970.jpg").write_bytes(b"\xff\xd8")
    told = place.error([], {"name": "clinic", "data-root": str(tmp_path / "data")}, MessageType.QUERY)
    assert told == "RunFailed: a file of the site cannot be used; its own log says which and why"


def test_the_server_learns_no_value_out_of_an_unforeseen_error(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("jane doe")

    monkeypatch.setattr(Site, "properties", broken)
    told = place.error([], place.node, MessageType.QUERY)
    assert told == "RunFailed: KeyError at the site; its own log says more"
    told = place.error([], {"partition-id": 0, "num-partitions": 1}, MessageType.QUERY)
    assert told == "KeyError: 'jane doe'"
