from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedgh_app.client.local_state import LocalState, file_of
from fedgh_app.config.compose import compose_config
from fedgh_app.errors import RunFailed

ZERO, ONE, TWO = ({"w": torch.tensor([value])} for value in (0.0, 1.0, 2.0))


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
    local = LocalState({2: ONE, 3: TWO}, accepted_draw=2, settled_draw=2, draw=3)
    with pytest.raises(RunFailed, match=f"own state is of training 2, the server goes on from training {draw}"):
        local.acknowledge(draw)


def test_a_server_that_is_resumed_finds_the_state_of_its_checkpoint() -> None:
    """Two trainings count since the checkpoint, which holds none; a third is under way as the server is killed."""
    local = LocalState()
    local.propose(1, ZERO)
    for draw, left in ((2, ONE), (3, TWO)):
        local.acknowledge(draw - 1, settled=0)
        local.propose(draw, left)
    local.acknowledge(0, settled=0, session=1)
    assert (local.accepted, local.versions, local.draw) == ({}, {}, 0)
    local.propose(1, ONE)
    local.acknowledge(1, settled=1, session=1)
    local.propose(2, TWO)
    local.acknowledge(2, settled=1, session=1)
    local.propose(3, ZERO)
    local.acknowledge(1, settled=1, session=2)
    assert (local.accepted, local.versions) == (ONE, {1: ONE})


def test_no_more_is_kept_than_may_still_count() -> None:
    local = LocalState()
    for draw in range(1, 9):
        local.propose(draw, ONE)
        local.acknowledge(draw, settled=max(0, draw - 5))
        assert set(local.versions) <= {draw, max(0, draw - 5)}
    for draw in range(9, 12):  # rejected, one after the other
        local.propose(draw, TWO)
        local.acknowledge(8, settled=8)
    assert set(local.versions) == {8, 11}


def test_a_training_of_lost_rounds_is_older_than_one_of_this_session(tmp_path: Path) -> None:
    file = tmp_path / "0.safetensors"
    LocalState({7: ONE}, draw=7).store(file)
    LocalState({5: TWO}, draw=5, session=1).store(file)
    found = LocalState.open(file)
    assert (found.versions, found.draw, found.session) == ({5: TWO}, 5, 1)


def test_it_survives_rounds_and_restarts(tmp_path: Path) -> None:
    file = tmp_path / "clients" / "0.safetensors"
    LocalState({2: ZERO, 3: ONE, 4: TWO}, accepted_draw=3, settled_draw=2, draw=4, session=1).store(file)
    again = LocalState.open(file)
    assert again.versions == {2: ZERO, 3: ONE, 4: TWO}
    assert (again.accepted, again.accepted_draw, again.settled_draw, again.draw, again.session) == (ONE, 3, 2, 4, 1)


def test_a_training_that_ends_after_its_successor_takes_nothing_back(tmp_path: Path) -> None:
    file = tmp_path / "0.safetensors"
    LocalState({6: TWO}, draw=6).store(file)
    LocalState({5: ONE}, draw=5).store(file)
    assert (LocalState.open(file).versions, LocalState.open(file).draw) == ({6: TWO}, 6)


def test_a_client_that_never_trained_keeps_nothing(tmp_path: Path) -> None:
    local = LocalState.open(tmp_path / "none")
    assert (local.accepted, local.versions, local.draw) == ({}, {}, 0)


def test_no_name_leads_out_of_the_folder(home: Path, tmp_path: Path) -> None:
    config = compose_config([])
    assert file_of(config, "a" * 32, "../../lab 1").parent == home / "clients" / ("a" * 32)
    assert len({file_of(config, "a" * 32, name) for name in ("lab 1", "lab/1", "lab_1")}) == 3
    simulated = compose_config([f"run_dir={tmp_path}"])
    assert file_of(simulated, "a" * 32, "0").parent == tmp_path / "clients"
    for run in ("../..", "/etc", ""):
        with pytest.raises(RunFailed, match="expected an id"):
            file_of(config, run, "0")
