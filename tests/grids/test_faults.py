"""Bad replies, a full disk, an aggregation that overflows, in this process: one line, and nothing else is lost."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY, toy_models
from faults import FAULTS, misbehaving
from network import federation

from fedgh_app.client_app import app as client_app
from fedgh_app.errors import RunFailed
from fedgh_app.runs import storage
from fedgh_app.runs.checkpoints import newest
from fedgh_app.runs.history import Round
from fedgh_app.server.federation import Federation


def model_of(run: Federation) -> dict[str, bytes]:
    return {key: array.data for key, array in run.arrays.items()}


PLACES = {kind: (1 + number // 2, "23"[number % 2]) for number, kind in enumerate(FAULTS)}  # round and client


@pytest.fixture(scope="module")
def faulted(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, Federation, str]]:
    """A run in which clients 2 and 3 spoil their replies in other ways each round, and one in which they raise instead;
    what the first said in the log."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    with pytest.MonkeyPatch.context() as patch, toy_models(patch):
        overrides = [*TINY, "runtime=inprocess", f"rounds={(len(FAULTS) + 1) // 2}"]
        overrides += ["evaluate.clients_every=0", "evaluate.central_every=0"]
        folder = tmp_path_factory.mktemp("faults")
        logging.getLogger("flwr").addHandler(handler)
        runs = []
        for spoil in (True, False):
            plan = {place: kind if spoil else "raises" for kind, place in PLACES.items()}
            runs.append(federation(overrides, folder / str(spoil), misbehaving(client_app, plan))[0])
        logging.getLogger("flwr").removeHandler(handler)
    yield runs[0], runs[1], "\n".join(said)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_bad_reply_is_rejected_by_name_and_the_round_goes_on(
    faulted: tuple[Federation, Federation, str], kind: str
) -> None:
    run, _, said = faulted
    number, client = PLACES[kind]
    (rejected,) = [item for item in run.history[number].rejected if item.client == client]
    assert rejected.round == number
    assert FAULTS[kind][1] in rejected.reason and "\n" not in rejected.reason
    assert client not in run.history[number].strategy["clients"]
    assert {"0", "1"} <= set(run.history[number].strategy["clients"])
    written = {"round": number, "client": client, "reason": rejected.reason}
    assert written in storage.read_lines(run.directory / "history.jsonl")[number]["rejected"]
    assert written in storage.read_json(run.directory / "result.json")["rejected"]
    assert f"round {number}: rejected client {client}: {rejected.reason}" in said


def test_a_client_that_raises_is_rejected_by_name_and_the_round_goes_on(
    faulted: tuple[Federation, Federation, str],
) -> None:
    _, run, _ = faulted
    found = {(item.round, item.client): item.reason for line in run.history for item in line.rejected}
    assert found.keys() == set(PLACES.values())
    assert all("out of memory" in reason for reason in found.values())


def test_nothing_of_a_bad_reply_reaches_the_model(faulted: tuple[Federation, Federation, str]) -> None:
    """A client that spoils its replies leaves the bits of a federation in which it never replied."""
    assert model_of(faulted[0]) == model_of(faulted[1])


class Full:
    """From a round on, no file may grow beyond ``size`` bytes: a disk that is full, as far as a writer can tell."""

    def __init__(self, server_round: int, size: int) -> None:
        self.server_round, self.size = server_round, size

    def after_round(self, run: Federation, current: Round) -> None:
        if current.round == self.server_round:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))

    def close(self, run: Federation, failure: str | None) -> None: ...


def test_a_disk_that_is_full_ends_the_run_with_its_last_good_checkpoint(quick: list[str], tmp_path: Path) -> None:
    overrides = [*quick, "rounds=3", "strategy=fedaw"]
    whole, _ = federation(overrides, tmp_path / "whole")
    directory = tmp_path / "run"
    try:
        with pytest.raises(RunFailed, match=r"^round 2: a file of the run could not be written: .*File too large"):
            federation([*overrides, f"run_dir={directory}"], directory, more=[Full(2, 100)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert newest(directory, 3).name == "round-0001.json"
    assert not list(directory.rglob("*.part"))
    again, _ = federation([*overrides, f"resume={directory}"], directory)
    assert model_of(again) == model_of(whole)


def test_what_a_kill_left_half_written_is_removed(quick: list[str], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    federation([*quick, "rounds=1", f"run_dir={directory}"], directory)
    for name in ("checkpoints/.round-0002.safetensors.7.part", ".model.safetensors.7.part"):
        (directory / name).write_bytes(b"half")
    (directory / "checkpoints" / "round-0002.safetensors").write_bytes(b"half")
    federation([*quick, "rounds=3", f"resume={directory}"], directory)
    assert not list(directory.rglob("*.part"))
    assert {file.stem for file in (directory / "checkpoints").glob("round-*")} >= {"round-0003"}
    assert not (directory / "checkpoints" / "round-0002.safetensors").exists() or storage.load_model(
        directory / "checkpoints" / "round-0002.safetensors"
    )


def test_an_aggregation_that_overflows_ends_the_run_with_the_model_of_before(quick: list[str], tmp_path: Path) -> None:
    """All updates are finite and alike; a server learning rate of 1000 takes them beyond float32."""

    huge = misbehaving(client_app, {(2, name): "grows" for name in "0123"})
    overrides = [*quick, "rounds=3", "strategy=fedavg", "server_optimizer=sgd", "server_optimizer.lr=1000"]
    with pytest.raises(RunFailed, match=r"^round 2: aggregation made NaN or infinity of finite updates, in \S+weight;"):
        federation(overrides, tmp_path / "run", huge)
    state, metadata = storage.load_model(tmp_path / "run")
    assert metadata["rounds"] == "1"
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in state.values())
    kept, _ = storage.load_model(newest(tmp_path / "run", 3).with_suffix(".safetensors"))
    assert all(bool((kept[key] == state[key]).all()) for key in state)
