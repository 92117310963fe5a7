from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict

from fedgh_app.local_state import LocalState, file_of

ONE, TWO = {"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}


def test_what_training_left_counts_once_the_server_says_so() -> None:
    local = LocalState()
    local.propose(1, ONE)
    assert local.accepted == {}
    local.acknowledge(1)
    assert local.accepted == ONE
    local.propose(2, TWO)
    local.acknowledge(1)  # training 2 was rejected, or the server went back to where it was before it
    assert local.accepted == ONE
    local.propose(2, TWO)
    local.acknowledge(2)
    local.acknowledge(2)  # said again with every message until the next training
    assert local.accepted == TWO


@pytest.mark.parametrize("survivor", ["state", "file"])
def test_it_survives_rounds_and_restarts(survivor: str, tmp_path: Path) -> None:
    state, file = RecordDict(), tmp_path / "clients" / "0.safetensors"
    local = LocalState()
    local.propose(3, ONE)
    local.acknowledge(3)
    local.propose(4, TWO)
    local.store(state, file)
    again = LocalState.open(state, tmp_path / "none") if survivor == "state" else LocalState.open(RecordDict(), file)
    assert (again.accepted, again.proposed, again.draw) == (ONE, TWO, 4)


def test_a_client_that_never_trained_keeps_nothing(tmp_path: Path) -> None:
    local = LocalState.open(RecordDict(), tmp_path / "none")
    assert (local.accepted, local.proposed, local.draw) == ({}, {}, 0)
    local.acknowledge(0)
    assert local.accepted == {}


def test_a_name_is_no_way_out_of_the_folder(home: Path) -> None:
    assert file_of("run", "../../lab 1").parent == home / "clients" / "run"
