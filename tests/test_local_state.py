from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict

from fedgh_app.config import compose_config
from fedgh_app.errors import RunFailed
from fedgh_app.local_state import LocalState, file_of

ONE, TWO = {"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}


def test_what_training_left_counts_once_the_server_says_so() -> None:
    local = LocalState()
    local.acknowledge(0)
    local.propose(1, ONE)
    local.acknowledge(0)  # training 1 was rejected
    assert local.accepted == {}
    local.propose(2, ONE)
    local.acknowledge(2)
    assert local.accepted == ONE
    local.propose(3, TWO)
    local.acknowledge(2)  # training 3 was rejected, or the server repeats the round
    assert local.accepted == ONE
    local.propose(3, TWO)
    local.acknowledge(3)
    local.acknowledge(3)  # said again with every message until the next training
    assert local.accepted == TWO


@pytest.mark.parametrize("draw", [0, 1, 4])
def test_a_server_that_goes_on_from_elsewhere_is_told(draw: int) -> None:
    local = LocalState(ONE, TWO, accepted_draw=2, draw=3)
    with pytest.raises(RunFailed, match=f"own state is of training 2, the server goes on from training {draw}"):
        local.acknowledge(draw)


@pytest.mark.parametrize("survivor", ["state", "file"])
def test_it_survives_rounds_and_restarts(survivor: str, tmp_path: Path) -> None:
    state, file = RecordDict(), tmp_path / "clients" / "0.safetensors"
    LocalState(ONE, TWO, accepted_draw=3, draw=4).store(state, file)
    again = LocalState.open(state, tmp_path / "none") if survivor == "state" else LocalState.open(RecordDict(), file)
    assert (again.accepted, again.proposed, again.accepted_draw, again.draw) == (ONE, TWO, 3, 4)


def test_a_training_that_ends_after_its_successor_takes_nothing_back(tmp_path: Path) -> None:
    early, late, file = RecordDict(), RecordDict(), tmp_path / "0.safetensors"
    LocalState(proposed=TWO, draw=6).store(late, file)
    LocalState(proposed=ONE, draw=5).store(early, file)
    for state in (early, late, RecordDict()):
        assert LocalState.open(state, file).draw == 6


def test_a_client_that_never_trained_keeps_nothing(tmp_path: Path) -> None:
    local = LocalState.open(RecordDict(), tmp_path / "none")
    assert (local.accepted, local.proposed, local.draw) == ({}, {}, 0)


def test_no_name_leads_out_of_the_folder(home: Path, tmp_path: Path) -> None:
    config = compose_config([])
    assert file_of(config, "a" * 32, "../../lab 1").parent == home / "clients" / ("a" * 32)
    assert len({file_of(config, "a" * 32, name) for name in ("lab 1", "lab/1", "lab_1")}) == 3
    simulated = compose_config([f"run_dir={tmp_path}"])
    assert file_of(simulated, "a" * 32, "0").parent == tmp_path / "clients"
    for run in ("../..", "/etc", ""):
        with pytest.raises(RunFailed, match="expected an id"):
            file_of(config, run, "0")
