"""Clients whose processes die, that never answer, or whose nodes go away, in this process: the rest goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import TINY
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from network import Network, federation

from fedgh_app.assembly.server import Assembly
from fedgh_app.client.termination import terminable
from fedgh_app.client_app import app as client_app
from fedgh_app.config.compose import compose_config, join_overrides
from fedgh_app.errors import RunFailed, UserError
from fedgh_app.grids.screening import ScreeningGrid
from fedgh_app.runs import storage
from fedgh_app.runs.checkpoints import newest
from fedgh_app.runs.history import Rejected
from fedgh_app.server.registration import register, wait_for_nodes

RAY = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing this task.'>"


def test_a_process_that_dies_in_simulation_ends_the_run_with_its_checkpoint(quick: list[str], tmp_path: Path) -> None:
    def kill(grid: Network, server_round: int) -> None:
        if server_round == 2:
            grid.errors[2] = (ErrorCode.UNKNOWN, RAY)

    simulated = [item.replace("inprocess", "simulation") for item in quick]
    with pytest.raises(RunFailed, match=r"^round 2: the process of client 1 died, and .* does not replace it$"):
        federation([*simulated, "rounds=3"], tmp_path / "run", before=kill)
    assert newest(tmp_path / "run", 3).name == "round-0001.json"
    assert storage.load_model(tmp_path / "run")[1]["rounds"] == "1"


def test_a_process_that_dies_at_a_node_costs_its_reply(quick: list[str], tmp_path: Path) -> None:
    """Its SuperNode says so once the process has stopped its heartbeat, and starts another for the next round."""

    def kill(grid: Network, server_round: int) -> None:
        grid.errors = {2: (ErrorCode.CLIENT_APP_CRASHED, "ClientApp stopped responding.")} if server_round == 2 else {}

    run, _ = federation([*quick, "rounds=3"], tmp_path / "run", before=kill)
    assert [line.rejected for line in run.history] == [
        [],
        [],
        [Rejected(round=2, client="1", reason="ClientApp stopped responding.")],
        [],
    ]
    assert run.history[3].strategy["clients"] == ["0", "1", "2", "3"]


def test_a_client_that_is_terminated_says_so() -> None:
    """Its own handler of the signal is back afterwards; elsewhere than in a deployment it is never away."""
    made = Network(client_app, [{}], {})
    asked = Message(RecordDict(), 1, "train")

    def killed(message: Message, context: Context) -> Message:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        return message

    context = made.contexts[1]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunFailed, match="its process was told to end while it was at work"):
        terminable(lambda _: True)(asked, context, killed)
    assert signal.getsignal(signal.SIGTERM) is before
    assert terminable(lambda _: False)(asked, context, lambda *_: signal.getsignal(signal.SIGTERM)) is before


def silence(grid: Network, server_round: int) -> None:
    """Node 3 (client 2) answers nothing of rounds 1 and 2 before round 3 begins."""
    grid.silent = {3} if server_round < 3 else set()


def test_a_client_that_never_answers_is_not_asked_again_until_it_does(quick: list[str], tmp_path: Path) -> None:
    run, grid = federation([*quick, "rounds=4", "round_timeout=1"], tmp_path / "run", before=silence)
    assert [(item.round, item.client, item.reason) for line in run.history for item in line.rejected] == [
        (1, "2", "no reply within the time it had")
    ]
    assert [line.absent for line in run.history] == [{}, {}, {"2": "it owes a reply"}, {}, {}]
    trained = [message for message in grid.sent if message.metadata.message_type == "train"]
    assert all(1 <= message.metadata.ttl < 2 for message in trained)
    asked = [message.content["config"]["server-round"] for message in trained if message.metadata.dst_node_id == 3]
    assert asked == [1, 3, 4]
    assert "2" in run.history[4].strategy["clients"]


def test_an_asynchronous_run_waits_for_no_client_that_never_answers(quick: list[str], tmp_path: Path) -> None:
    overrides = [*quick, "rounds=4", "mode=async", "mode.buffer=3"]
    run, grid = federation(overrides, tmp_path / "run", before=lambda grid, _: grid.silent.add(3))
    assert sum(message.metadata.dst_node_id == 3 for message in grid.sent) == 2  # who it is, and one training
    assert len(run.history) == 5


def test_in_simulation_a_client_that_never_answers_is_left_alone(quick: list[str], tmp_path: Path) -> None:
    """Another process would answer the question whether it is still at work."""
    simulated = [item.replace("inprocess", "simulation") for item in quick]
    run, grid = federation([*simulated, "rounds=4", "round_timeout=1"], tmp_path / "run", before=silence)
    assert [line.absent for line in run.history] == [{}, {}, *[{"2": "it owes a reply"}] * 3]
    assert sum(message.metadata.dst_node_id == 3 for message in grid.sent) == 2  # who it is, and one training


def test_calls_that_still_run_when_a_simulation_has_ended_are_ended() -> None:
    """Ray names a process after the call that it runs; one that is idle, or another program, is let be."""
    code = """if True:
        import subprocess, time
        from fedgh_app.runs.processes import end_ray_calls
        names = ["ray::ClientAppActor.run", "ray::IDLE", "sleep"]
        children = [subprocess.Popen([name, "60"], executable="/bin/sleep") for name in names]
        end_ray_calls()
        children[0].wait(20)
        late = subprocess.Popen(["ray::ClientAppActor.run", "60"], executable="/bin/sleep")
        late.wait(20)
        time.sleep(0.1)
        print([child.poll() for child in [*children, late]])
        for child in children: child.kill()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[-9, None, None, -9]"


def test_a_start_with_too_few_nodes_waits_so_long_and_says_who_is_there() -> None:
    grid = Network(client_app, [{"partition-id": 0}, {"partition-id": 1}], {})
    grid.offline = {2}
    started = time.monotonic()
    words = "num_clients=2: 1 nodes are connected; expected 2 within runtime.node_timeout=1 seconds, found site-1"
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        wait_for_nodes(grid, 2, 1)
    assert 1 <= time.monotonic() - started < 5
    threading.Timer(0.5, grid.offline.clear).start()
    assert wait_for_nodes(grid, 2, 20) == [1, 2]


def test_who_cannot_say_its_name_goes_by_the_one_it_is_registered_under(home: Path, tmp_path: Path) -> None:
    config = compose_config([*TINY, "partition=site", "runtime=deployment", f"dataset.root={tmp_path}"])
    grid = Network(client_app, [{"name": "clinic"}], {"overrides": join_overrides([*TINY, "partition=site"])})
    with pytest.raises(UserError, match=r"^1 of 1 clients cannot take part: client site-1: .* no data-root"):
        register(Assembly(config).federation(tmp_path), ScreeningGrid(grid))


def test_a_round_with_fewer_clients_than_the_minimum_waits_so_long_and_says_who_is_missing(
    quick: list[str], tmp_path: Path
) -> None:
    def leave(grid: Network, server_round: int) -> None:
        if server_round == 2:
            grid.offline = {2, 3}

    overrides = [*quick, "rounds=3", "min_clients=3", "+runtime.node_timeout=1"]
    away = "client 1: its node is not connected; client 2: its node is not connected"
    words = rf"^round 2: 2 of 4 clients can be asked after 1 seconds, expected at least 3 \({away}\)$"
    with pytest.raises(RunFailed, match=words):
        federation(overrides, tmp_path / "run", before=leave)
    assert newest(tmp_path / "run", 3).name == "round-0001.json"


def test_a_node_that_is_back_within_the_wait_saves_the_round(quick: list[str], tmp_path: Path) -> None:
    def leave(grid: Network, server_round: int) -> None:
        if server_round == 2:
            grid.offline = {2, 3}
            threading.Timer(0.5, grid.offline.clear).start()

    run, _ = federation([*quick, "min_clients=3", "+runtime.node_timeout=30"], tmp_path / "run", before=leave)
    assert run.history[2].strategy["clients"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("same", [True, False], ids=["same id", "another id"])
def test_a_node_that_disappears_is_not_asked_and_takes_part_once_it_is_back(
    same: bool, quick: list[str], tmp_path: Path
) -> None:
    def leave(grid: Network, server_round: int) -> None:
        grid.offline = {3} if server_round == 2 or not same else set()
        if server_round == 3 and not same:
            grid.contexts[9] = grid.contexts[3]
        if server_round == 1:
            grid.offline = set()

    run, _ = federation([*quick, "rounds=5", "strategy=fedaw"], tmp_path / "run", before=leave)
    trained = [line.strategy["clients"] for line in run.history[1:]]
    assert trained[0] == ["0", "1", "2", "3"]
    assert trained[1] == ["0", "1", "3"]
    assert trained[-1] == ["0", "1", "2", "3"]
    assert run.history[2].absent == {"2": "its node is not connected"}
    assert not any(line.rejected for line in run.history)
    assert run.strategy.client_names == {1: "0", 2: "1", 3 if same else 9: "2", 4: "3"}
    assert sorted(run.strategy.state_dict()["participations"]) == ["0", "1", "2", "3"]


def test_nobody_takes_the_name_of_a_client_that_is_connected(quick: list[str], tmp_path: Path) -> None:
    def intrude(grid: Network, server_round: int) -> None:
        if server_round == 1:
            grid.contexts[9] = grid.contexts[3]
            grid.contexts[8] = grid.contexts[4]
            grid.offline = {8}

    _, grid = federation([*quick, "rounds=3"], tmp_path / "run", before=intrude)
    assert {m.metadata.dst_node_id for m in grid.sent if m.metadata.message_type == "train"} == {1, 2, 3, 4}
    assert [m.metadata.dst_node_id for m in grid.sent if m.metadata.message_type == "query"] == [1, 2, 3, 4, 9]
