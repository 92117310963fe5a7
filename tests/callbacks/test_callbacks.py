"""Which callbacks a run has: those that the config lists, in its order, and a user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from fedgh_app.assembly.server import Assembly
from fedgh_app.client_app import app as client_app
from fedgh_app.config import choices
from fedgh_app.config.compose import compose_config, join_overrides
from fedgh_app.errors import UserError
from fedgh_app.grids.inprocess import InProcessGrid
from fedgh_app.runs.history import Round, read_history
from fedgh_app.runs.resumption import check_same
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation
from fedgh_app.server.loop import federate

USUAL = ["CentralEvaluation", "History", "Checkpoint", "Model", "Progress", "Plots", "ModelCard", "WandB"]


class Temperature(Callback):
    """Adds a number to each round."""

    def __init__(self, degrees: float = 20.0) -> None:
        self.degrees = degrees
        self.failure: str | None = "not closed"

    def after_round(self, federation: Federation, current: Round) -> None:
        current.train["temperature"] = self.degrees + current.round

    def close(self, federation: Federation, failure: str | None) -> None:
        self.failure = failure


@pytest.fixture
def temperature(monkeypatch: pytest.MonkeyPatch) -> str:
    """The class as a user adds it: in a file of its own under fedgh_app/callbacks."""
    module = ModuleType("fedgh_app.callbacks.temperature")
    monkeypatch.setattr(Temperature, "__module__", module.__name__)
    monkeypatch.setattr(module, "Temperature", Temperature, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return f"{module.__name__}.Temperature"


def names(*overrides: str) -> list[str]:
    return [type(callback).__name__ for callback in Assembly(compose_config(overrides)).callbacks]


def test_what_adds_to_a_round_comes_before_what_records_it() -> None:
    assert names() == USUAL


def test_one_more_for_once_and_one_less(temperature: str) -> None:
    more = ["+callbacks.warm._target_=" + temperature, "+callbacks.warm.degrees=30"]
    assert names(*more) == [*USUAL, "Temperature"]
    assert Assembly(compose_config(more)).callbacks[-1].degrees == 30
    assert "Plots" not in names("~callbacks.plots")


def test_a_file_of_ones_own_lists_it_before_the_others(
    temperature: str, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run calls it: what it adds is in the history, and it is closed."""
    folder = tmp_path / "conf"
    folder.mkdir()
    for entry in choices.CONF.iterdir():
        if entry.name != "callbacks":
            (folder / entry.name).symlink_to(entry)
    (folder / "callbacks").mkdir()
    (folder / "callbacks/default.yaml").symlink_to(choices.CONF / "callbacks/default.yaml")
    own = {"defaults": ["_self_", "default"], "warm": {"_target_": temperature}}
    OmegaConf.save(OmegaConf.create(own), folder / "callbacks/warm.yaml")
    monkeypatch.setattr(choices, "CONF", folder)
    assert names("callbacks=warm") == ["Temperature", *USUAL]
    assembly = Assembly(compose_config([*toy, "callbacks=warm", "rounds=1"]))
    assembly.data.deal(4)
    nodes = [{"partition-id": number, "num-partitions": 4} for number in range(4)]
    grid = InProcessGrid(client_app, nodes, {"overrides": join_overrides([*toy, "rounds=1"])})
    (tmp_path / "run").mkdir()
    federate(assembly.federation(tmp_path / "run"), grid, assembly.callbacks)
    assert [line.train["temperature"] for line in read_history(tmp_path / "run")] == [20, 21]
    warm: Any = assembly.callbacks[0]
    assert warm.failure is None
    # What is written down beside a run may change when it goes on.
    check_same(Assembly(compose_config([*toy, "rounds=2"])).values, tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+callbacks.x._target_=os.System", r"callbacks\._target_=os\.System: expected a class under fedgh_app\.callb"),
        ("+callbacks.x._target_=fedgh_app.callbacks.wandb.flatten", "expected a class under fedgh_app.callbac"),
        ("+callbacks.x=3", r"callbacks\.x=3: expected a _target_ and its arguments"),
        ("+callbacks.x.y=3", r"callbacks\._target_=None: expected a class under"),
        ("+callbacks.history.x._target_=torch.optim.SGD", r"callbacks\.history\.x\._target_=.*: expected no _target_"),
    ],
)
def test_no_other_objects_are_built(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose_config([override])


def test_a_wrong_argument_is_told_before_anything_starts(toy: list[str]) -> None:
    with pytest.raises(UserError, match=r"callbacks: .*unexpected keyword argument 'degree'.*; it takes every"):
        Assembly(compose_config([*toy, "+callbacks.evaluation.degree=3"])).check()
