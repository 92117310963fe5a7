"""A finished run teaches the clients of another: loading it, what is refused, and a whole federation under it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf

from benchmarks import hhd_ablation as ablation
from fedgh_app import client_app
from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.config.compose import absolute_paths, compose_config
from fedgh_app.config.site import SitePaths, bounded
from fedgh_app.data.site import open_site
from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.models import PoseNet
from fedgh_app.pose.models.decoding import Integral
from fedgh_app.pose.models.hhd import HHD, Guide
from fedgh_app.runs import storage

STUDENT = [
    *("model=shufflenet_v2", "model.backbone=shufflenet_v2_x0_5", "model.head=integral", "loss=integral"),
    *("model.debiased=false", "model.beta=2.0", "teacher=hhd"),
]


def teacher_run(folder: Path, *overrides: str) -> Path:
    """A run directory whose model was never trained."""
    config = compose_config([*TINY, *overrides])
    folder.mkdir()
    OmegaConf.save(config, folder / "config.yaml")
    head, spec = config.model.head, load_spec(config.dataset.spec)
    model = PoseNet("resnet18", len(spec.keypoints), head=head, head_width=8)
    storage.save_model(
        folder / "model.safetensors", model.state_dict(), model=config.model, dataset=spec.name, rounds=0
    )
    return folder


@pytest.fixture(scope="module")
def teacher(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_run(tmp_path_factory.mktemp("teacher") / "run")


def student(*overrides: str) -> list[str]:
    return [*TINY, *STUDENT, *overrides]


def test_a_student_trains_under_a_teacher_and_reports_its_own_loss(teacher: Path) -> None:
    assembly = ClientAssembly(compose_config(student(f"teacher.run={teacher}")))
    assembly.data.deal(4)
    held = open_site(assembly.data, {"partition-id": 0, "num-partitions": 4})
    held = dataclasses.replace(held, train=held.train[:8])  # one step
    guide = assembly.guide(held.examples.spec)
    assert guide is not None
    taught = assembly.client(held)
    initial = taught.training.initial

    def trained(guide: Guide | None) -> tuple[list[np.ndarray], object]:
        taught.model.load_state_dict(initial)
        parts = dataclasses.replace(taught.learner.parts, guide=guide)
        client = dataclasses.replace(taught, learner=dataclasses.replace(taught.learner, parts=parts))
        sent = [array.copy() for array in client.get_parameters({})]
        arrays, _, metrics = client.fit(sent, {"server-round": 1, "draw": 1})
        return [array.copy() for array in arrays], metrics["loss"]

    before = [parameter.clone() for parameter in guide.teacher.state_dict().values()]
    alone, loss = trained(None)
    guided, same_loss = trained(guide)
    weightless, _ = trained(dataclasses.replace(guide, distillation=HHD(weight=0.0)))
    assert loss == same_loss
    assert all(np.array_equal(a, b) for a, b in zip(alone, weightless, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(alone, guided, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, guide.teacher.state_dict().values(), strict=True))


def test_the_guide_is_what_the_runs_say(teacher: Path) -> None:
    config = compose_config(student(f"teacher.run={teacher}", "teacher.loss=l2", "teacher.mirror=false"))
    guide = ClientAssembly(config).guide(load_spec("arm"))
    assert guide is not None
    assert guide.integral == Integral(debiased=False, beta=2.0)
    assert guide.logits and guide.input_size == (32, 32)  # trained by cross_entropy, on 32 x 32
    assert guide.distillation.loss == "l2" and not guide.distillation.mirror
    assert not guide.teacher.training and not any(p.requires_grad for p in guide.teacher.parameters())


def test_a_teacher_trained_by_squared_error_has_no_logits(tmp_path: Path, home: Path) -> None:
    path = teacher_run(tmp_path / "run", "loss=mse")
    guide = ClientAssembly(compose_config(student(f"teacher.run={path / 'model.safetensors'}"))).guide(load_spec("arm"))
    assert guide is not None and not guide.logits


def test_without_a_teacher_there_is_no_guide(home: Path) -> None:
    assert ClientAssembly(compose_config(TINY)).guide(load_spec("arm")) is None


def test_a_sites_own_copy_wins(tmp_path: Path, teacher: Path) -> None:
    own = SitePaths(teacher=str(teacher))
    config = compose_config(student("partition=site", "teacher.run=/nowhere"))
    assert ClientAssembly(bounded(config, own)).guide(load_spec("arm")) is not None
    nobody = compose_config(student("partition=site"))
    assert ClientAssembly(bounded(nobody, own)).guide(load_spec("arm")) is not None
    with pytest.raises(
        UserError, match=r"^teacher\.run=null: expected a path, or a node config that says teacher=PATH$"
    ):
        ClientAssembly(nobody).guide(load_spec("arm"))


def test_the_client_app_takes_the_nodes_word(teacher: Path) -> None:
    text = " ".join(student("partition=site", "teacher.run=/nowhere"))
    own = SitePaths(teacher=str(teacher))
    spec = load_spec("arm")
    assert client_app.assembly_at(text, own).guide(spec) is client_app.assembly_at(text, own).guide(spec)
    with pytest.raises(UserError, match="/nowhere"):
        client_app.assembly_at(text, SitePaths()).guide(spec)


OTHER_KEYPOINTS = "finds right_ankle, .*; expected a teacher of the keypoints of arm: shoulder, elbow, wrist"
IMPLICIT = r"its maps are implicit \(model\.head=integral\); expected a run with model\.head=heatmap"
OTHER_SHAPE = r"was trained on images of 32 x 32; expected the shape of dataset\.input_size=\[64, 32\], .*"


@pytest.mark.parametrize(
    "made, asked, told",
    [
        (["dataset=lspet", "partition=iid"], [], OTHER_KEYPOINTS),
        (["model.head=integral", "loss=integral"], [], IMPLICIT),
        ([], ["dataset.input_size=[64,32]"], OTHER_SHAPE),
    ],
)
def test_a_teacher_that_does_not_fit_is_told_before_the_run(
    made: list[str], asked: list[str], told: str, tmp_path: Path, home: Path
) -> None:
    path = teacher_run(tmp_path / "run", *made)
    with pytest.raises(UserError, match=rf"^teacher\.run={path}: {told}") as error:
        ClientAssembly(compose_config([*student(f"teacher.run={path}"), *asked])).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides, told",
    [
        ([], "teacher.run=null: expected the run directory of a trained model"),
        (["teacher.run=3"], "teacher.run=3: expected the run directory of a trained model"),
        (["teacher.run=a", "teacher.loss=3"], "teacher.loss=3: expected a word, not a whole number"),
        (["teacher.run=a", "teacher._target_=os.System"], "teacher._target_=os.System: expected a class under .*"),
    ],
)
def test_what_no_teacher_can_be_is_told_when_the_config_is_composed(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError, match=f"^{told}$"):
        compose_config(student(*overrides))


def test_a_wrong_option_of_the_distillation_is_told_before_the_run(teacher: Path) -> None:
    with pytest.raises(UserError, match=r"^teacher\.window=2\.0: expected a share"):
        ClientAssembly(compose_config(student(f"teacher.run={teacher}", "teacher.window=2.0"))).check()


def test_the_path_to_the_teacher_is_absolute_when_it_reaches_flower(
    monkeypatch: pytest.MonkeyPatch, teacher: Path
) -> None:
    monkeypatch.chdir(teacher.parent)
    found = absolute_paths(compose_config(student("teacher.run=run")))
    assert f"teacher.run='{teacher}'" in found
    assert not any("teacher" in item for item in absolute_paths(compose_config(TINY)))


def test_the_runs_of_the_ablation_compose() -> None:
    taught = ablation.taught(Path("/teacher"))
    for overrides in (ablation.TEACHER, ablation.START, (*ablation.STUDENT, "init=/start")):
        compose_config([*ablation.FEDERATION, *overrides])
    plain = compose_config([*ablation.FEDERATION, *ablation.STUDENT, *taught, *ablation.PLAIN]).teacher
    assert (plain.normalise, plain.unbiased_crop, plain.loss) == (False, False, "l2")
    whole = compose_config([*ablation.FEDERATION, *ablation.STUDENT, *taught, *ablation.HHD]).teacher
    assert (whole.normalise, whole.unbiased_crop, whole.mirror) == (True, True, True)
    rows = [ablation.Row("integral alone", [0.5, 0.6], 3.0), ablation.Row("heatmap teacher", [0.9], 9.0)]
    assert ablation.table(rows).row_count == 2
