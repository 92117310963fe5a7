"""Every fault of docs/faults.md, in this process: what the run makes of it, and that nothing else is lost."""

from __future__ import annotations

import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, toy_models
from faults import FAULTS, misbehaving
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from recording import Recording

from fedgh_app import partition, site, storage
from fedgh_app.callbacks import CentralEvaluation, History, Model
from fedgh_app.checkpoints import Checkpoint, newest
from fedgh_app.client_app import app as client_app
from fedgh_app.config import compose_config, join_overrides
from fedgh_app.errors import RunFailed
from fedgh_app.federation import Federation, Round
from fedgh_app.outliers import Outliers
from fedgh_app.pose.errors import UserError
from fedgh_app.replies import Norms, squared_distance
from fedgh_app.server_app import federate, wait_for_nodes
from fedgh_app.termination import terminable

RAY = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing this task.'>"


class Network(Recording):
    """Clients that may fall silent, die, go away and come back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.silent: set[int] = set()  # nodes whose replies are held back
        self.errors: dict[int, tuple[int, str]] = {}  # what the engine answers in a node's place
        self.offline: set[int] = set()

    def get_node_ids(self) -> list[int]:
        return [node for node in super().get_node_ids() if node not in self.offline]

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=f"site-{node}") for node in self.get_node_ids()]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        held = [entry for entry in self._ready if entry[2].metadata.src_node_id in self.silent]
        for entry in held:
            self._ready.remove(entry)
        found = super().pull_messages(message_ids)
        self._ready += held
        return [self._error(reply) for reply in found]

    def _error(self, reply: Message) -> Message:
        code, reason = self.errors.get(reply.metadata.src_node_id, (None, ""))
        if code is None or reply.metadata.message_type != "train":
            return reply
        asked = next(m for m in self.sent if m.metadata.message_id == reply.metadata.reply_to_message_id)
        return Message(Error(code, reason), reply_to=asked)


def federation(
    overrides: list[str],
    directory: Path,
    app: Any = client_app,
    *,
    before: Callable[[Network, int], None] = lambda grid, server_round: None,
    more: Iterable[Any] = (),
) -> tuple[Federation, Network]:
    """A federation of four clients over a `Network`, which ``before`` may disturb before each round."""
    config = compose_config(overrides)
    partition.partition(config, site.open_data(config), 4)
    nodes = [{"partition-id": number, "num-partitions": 4} for number in range(4)]
    directory.mkdir(exist_ok=True)
    grid = Network(app, nodes, {"overrides": join_overrides(overrides)})
    done = iter(range(1, config.rounds + 2))
    hooks = [CentralEvaluation(), History(), *more, Checkpoint(1), Model()]
    return federate(config, grid, directory, hooks, watch=lambda: before(grid, next(done))), grid


def model_of(run: Federation) -> dict[str, bytes]:
    return {key: array.data for key, array in run.arrays.items()}


@pytest.fixture
def quick(toy: list[str]) -> list[str]:
    """A toy run without evaluation by clients."""
    return [*toy, "evaluate.clients_every=0"]


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
    (rejected,) = [item for item in run.history[number].rejected if item["client"] == client]
    assert rejected["round"] == number
    assert FAULTS[kind][1] in rejected["reason"] and "\n" not in rejected["reason"]
    assert client not in run.history[number].strategy["clients"]
    assert {"0", "1"} <= set(run.history[number].strategy["clients"])
    assert rejected in storage.read_lines(run.directory / "history.jsonl")[number]["rejected"]
    assert rejected in storage.read_json(run.directory / "result.json")["rejected"]
    assert f"round {number}: rejected client {client}: {rejected['reason']}" in said


def test_a_client_that_raises_is_rejected_by_name_and_the_round_goes_on(
    faulted: tuple[Federation, Federation, str],
) -> None:
    _, run, _ = faulted
    found = {(item["round"], item["client"]): item["reason"] for this in run.history for item in this.rejected}
    assert found.keys() == set(PLACES.values())
    assert all("out of memory" in reason for reason in found.values())


def test_nothing_of_a_bad_reply_reaches_the_model(faulted: tuple[Federation, Federation, str]) -> None:
    """A client that spoils its replies leaves the bits of a federation in which it never replied."""
    assert model_of(faulted[0]) == model_of(faulted[1])


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
    assert [this.rejected for this in run.history] == [
        [],
        [],
        [{"round": 2, "client": "1", "reason": "ClientApp stopped responding."}],
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
    context.run_config = {"overrides": "runtime=deployment partition=site"}
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunFailed, match="its process was told to end while it was at work"):
        terminable(asked, context, killed)
    assert signal.getsignal(signal.SIGTERM) is before
    context.run_config = {"overrides": ""}
    assert terminable(asked, context, lambda *_: signal.getsignal(signal.SIGTERM)) is before


def silence(grid: Network, server_round: int) -> None:
    """Node 3 (client 2) answers nothing of rounds 1 and 2 before round 3 begins."""
    grid.silent = {3} if server_round < 3 else set()


def test_a_client_that_never_answers_is_not_asked_again_until_it_does(quick: list[str], tmp_path: Path) -> None:
    run, grid = federation([*quick, "rounds=4", "round_timeout=1"], tmp_path / "run", before=silence)
    assert [(item["round"], item["client"], item["reason"]) for this in run.history for item in this.rejected] == [
        (1, "2", "no reply within the time it had")
    ]
    assert [this.absent for this in run.history] == [{}, {}, {"2": "it owes a reply"}, {}, {}]
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
    assert [this.absent for this in run.history] == [{}, {}, *[{"2": "it owes a reply"}] * 3]
    assert sum(message.metadata.dst_node_id == 3 for message in grid.sent) == 2  # who it is, and one training


def test_calls_that_still_run_when_a_simulation_has_ended_are_ended() -> None:
    """Ray names a process after the call that it runs; one that is idle, or another program, is let be."""
    code = """if True:
        import subprocess, time
        from fedgh_app.processes import end_ray_calls
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
    trained = [this.strategy["clients"] for this in run.history[1:]]
    assert trained[0] == ["0", "1", "2", "3"]
    assert trained[1] == ["0", "1", "3"]
    assert trained[-1] == ["0", "1", "2", "3"]
    assert run.history[2].absent == {"2": "its node is not connected"}
    assert not any(this.rejected for this in run.history)
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


class Full:
    """From a round on, no file may grow beyond ``size`` bytes: a disk that is full, as far as a writer can tell."""

    def __init__(self, server_round: int, size: int) -> None:
        self.server_round, self.size = server_round, size

    def after_round(self, run: Federation, this: Round) -> None:
        if this.round == self.server_round:
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


def norms(*values: float) -> dict[str, Norms]:
    return {str(place): Norms(value, 1.0) for place, value in enumerate(values)}


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        ((1.0, 1.0, 101.0), ["2"]),
        ((1.0, 1.0, 99.0), []),
        ((1.0, 2.0, 3.0, 150.0, 1e30), ["4"]),  # the median is 3
        ((1.0, float("inf"), 1.0), ["1"]),
        ((0.0, 0.0, 5.0), []),  # a median of 0 says nothing
        ((1.0, 1e9), []),  # of two, nobody can say which is odd
        ((1e9,), []),
    ],
)
def test_an_update_far_above_the_median_is_odd(values: tuple[float, ...], odd: list[str]) -> None:
    assert list(Outliers(100.0).reasons(norms(*values))) == odd


def test_few_updates_are_compared_with_those_accepted_last() -> None:
    seen = Outliers(100.0)
    assert [bool(seen.reasons(norms(value))) for value in (1.0, 1.2, 0.9, 1e6, 1.1, 1e6)] == [
        False,
        False,
        False,
        True,
        False,
        True,
    ]
    again = Outliers(100.0)
    again.load_state_dict(storage.plain(seen.state_dict()))
    assert list(again.recent) == list(seen.recent) == [(value, 1.0) for value in (1.0, 1.2, 0.9, 1.1)]
    assert not Outliers(float("inf")).reasons(norms(1.0, 1.0, 1.0, 1e30))


def test_a_norm_is_that_of_the_difference_in_every_floating_type() -> None:
    draw = np.random.default_rng(0)
    for dtype in (np.float16, np.float32, np.float64):
        start, end = (draw.standard_normal(200_001).astype(dtype) for _ in range(2))
        expected = float(np.sum((end.astype(np.float64) - start.astype(np.float64)) ** 2))
        assert squared_distance(start, end) == pytest.approx(expected, rel=1e-3 if dtype == np.float16 else 1e-5)
    far = np.full(3, 3e38, np.float32)
    assert squared_distance(-far, far) == pytest.approx(3 * (6e38) ** 2)
    assert squared_distance(np.empty(0, np.float32), np.empty(0, np.float32)) == 0.0
