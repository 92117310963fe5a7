"""Fixtures that many tests share: a small generated data set, and settings that run in seconds."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from fedgh_app.config import instantiation
from fedgh_app.task import Spec, Task

# Tests measure nothing; one thread each keeps them from fighting over two cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["WANDB_SILENT"] = "true"
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"

# A federation that trains in seconds: tiny crops, a narrow head, two rounds.
# Started in the background, pytest ignores Ctrl-C, and so would all that its tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = [
    "dataset.input_size=[32,32]",
    "model.head_width=8",
    "batch_size=8",
    "rounds=2",
    "tracking=none",
    "augmentation=none",
]


# What else a run with differential privacy needs.
CENTRAL = ["privacy=central", "strategy=fedavg", "strategy.equal_weights=true", "model.norm=group"]
LOCAL = ["privacy=local", "model.norm=group"]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """FEDGH_HOME of the test session, with 80 generated arms in it."""
    from fedgh_app.pose.arms.generated import generate

    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("FEDGH_HOME")
    os.environ["FEDGH_HOME"] = str(folder)
    generate(folder / "data" / "arm", count=80, seed=0, image_size=(96, 96))
    yield folder
    if before is None:
        del os.environ["FEDGH_HOME"]
    else:
        os.environ["FEDGH_HOME"] = before


@pytest.fixture
def tiny(home: Path) -> list[str]:
    """Overrides of a run that takes seconds, in-process, on the generated arms."""
    return [*TINY, "runtime=inprocess"]


@pytest.fixture
def fedgh(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Calls the command in this process with its arguments, for its exit status."""
    from fedgh_app import cli

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fedgh", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return call


@pytest.fixture
def shared_data() -> Path:
    """The folder with real photographs beside the repository; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real photographs in {SHARED.relative_to(REPOSITORY.parent)}")
    return SHARED


class ToyPose(nn.Module):
    """The names of a pose network's parts, and next to none of its arithmetic: for tests of what is around it."""

    def __init__(self, num_keypoints: int, norm: str = "batch") -> None:
        super().__init__()
        layer = nn.GroupNorm(2, 4) if norm == "group" else nn.BatchNorm2d(4)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), layer, nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(4, num_keypoints, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


@contextmanager
def toy_models(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every model that is built in this process is a toy, until ``patch`` is undone."""

    def build(node: DictConfig, task: Task, spec: Spec) -> nn.Module:
        return ToyPose(len(spec.predicts), node.norm)

    from fedgh_app import client_app

    patch.setattr(instantiation, "build_model", build)
    client_app.assembly_at.cache_clear()
    yield
    client_app.assembly_at.cache_clear()


@pytest.fixture
def toy(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Overrides of a run in-process that trains a toy model and takes a blink."""
    with toy_models(monkeypatch):
        yield [*TINY, "runtime=inprocess"]


@pytest.fixture
def quick(toy: list[str]) -> list[str]:
    """A toy run without evaluation by clients."""
    return [*toy, "evaluate.clients_every=0"]
