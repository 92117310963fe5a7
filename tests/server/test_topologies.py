"""Topologies and clusters on a model of one number and one running mean, worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedgh_app.errors import RunFailed, UserError
from fedgh_app.runs.history import Round
from fedgh_app.server.aggregation import combine, mean, merge
from fedgh_app.server.federation import ClientInfo, Federation, Update
from fedgh_app.server.parts.server_optimizer import ServerOptimizerPart
from fedgh_app.server.topologies import EdgeCloud, Finch, Flat, Topology, edges_of
from strategies import FedAvg, FedAW
from strategies.server_optimizer import ServerOptimizer


@pytest.fixture(autouse=True)
def _outside_a_run() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def model(w: float, running: float = 1.0) -> ArrayRecord:
    return ArrayRecord(
        {"w": Array(np.array([w], np.float32)), "bn.running_mean": Array(np.array([running], np.float32))}
    )


def value(arrays: ArrayRecord, key: str = "w") -> float:
    return float(arrays[key].numpy()[0])


def reply(node: int, arrays: ArrayRecord, examples: int) -> Message:
    asked = Message(RecordDict(), node, "train")
    metrics = MetricRecord({"num-examples": examples, "loss": 1.0, "learning-rate": 0.1, "steps": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked)


class Moves:
    """A mode in which client k's training adds ``moves[k]`` to w, whatever model it got."""

    def __init__(self, moves: Mapping[str, float]) -> None:
        self.moves = moves
        self.seen: list[tuple[int, dict[str, float]]] = []

    def updates(self, exchange: Any, draw: int) -> list[Update]:
        run = exchange.federation
        self.seen.append((draw, {name: value(run.cohorts[name]) for name in self.moves}))
        return [
            Update(
                name,
                reply(
                    list(run.clients).index(name) + 1,
                    model(value(run.cohorts[name]) + move),
                    run.clients[name].examples,
                ),
                run.cohorts[name],
            )
            for name, move in self.moves.items()
        ]


def federation(
    examples: Mapping[str, int],
    moves: Mapping[str, float],
    strategy: Any,
    topology: Topology | None = None,
    *,
    edge_strategy: Any = None,
    parts: Mapping[str, Any] | None = None,
) -> Federation:
    clients = {name: ClientInfo(name, name, count, 0) for name, count in examples.items()}
    nothing: dict[str, Any] = dict.fromkeys(
        ("settings", "values", "directory", "task", "data", "spec", "network", "learner", "selection", "schedule")
    )
    made = Federation(
        **nothing,
        initial=model(0.0),
        keeps_local=False,
        any_head=lambda: False,
        strategy=strategy,
        client_strategy=edge_strategy or strategy,
        mode=Moves(moves),
        topology=topology or Flat(),
        parts=dict(parts or {}),
        learning_rate=0.1,
    )
    made.admit(clients, dict(enumerate(clients, start=1)))
    return made


def run_round(run: Federation, number: int) -> Round:
    """One round of the federation's topology, whose mode asks nobody."""
    current = Round(round=number)
    run.topology.run_round(SimpleNamespace(federation=run, round=current))
    return current


def test_flat() -> None:
    """w = 0 + (1·4 + 3·8) / 4 = 7."""
    run = federation({"a": 1, "b": 3}, {"a": 4.0, "b": 8.0}, FedAvg())
    current = run_round(run, 1)
    assert value(run.arrays) == 7
    assert current.train["clients"].keys() == {"a", "b"}
    assert current.strategy["c"] == {"a": 0.25, "b": 0.75}


def test_a_server_optimizer_takes_the_step_after_any_weighting() -> None:
    """SGD with learning rate 0.5 and momentum 0.9 on the gradient -7: w = 3.5; then v = 0.9·(-7) - 7 = -13.3,
    w = 3.5 + 6.65 = 10.15."""
    optimizer = ServerOptimizerPart(ServerOptimizer(lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9)))
    run = federation({"a": 1, "b": 3}, {"a": 4.0, "b": 8.0}, FedAvg(), parts={"server_optimizer": optimizer})
    run_round(run, 1)
    assert value(run.arrays) == pytest.approx(3.5)
    run_round(run, 2)
    assert value(run.arrays) == pytest.approx(10.15)


def test_edges_then_the_cloud() -> None:
    """Edge 0 holds a (1 example, +4) and b (3, +8); edge 1 holds c (4, +1).

    Two edge rounds: edge 0 goes 0 → 7 → 14, edge 1 goes 0 → 1 → 2. The cloud weighs them by 4 and 4 examples: 8.
    """
    sizes, moves = {"a": 1, "b": 3, "c": 4}, {"a": 4.0, "b": 8.0, "c": 1.0}
    run = federation(sizes, moves, FedAvg(), EdgeCloud(2, 2), edge_strategy=FedAvg())
    current = run_round(run, 1)
    assert value(run.arrays) == 8
    assert run.mode.seen == [(1, {"a": 0, "b": 0, "c": 0}), (2, {"a": 7, "b": 7, "c": 1})]
    assert current.strategy["cloud"]["c"] == {"edge-0": 0.5, "edge-1": 0.5}
    assert current.strategy["c"] == {"a": 0.25, "b": 0.75, "c": 1.0}
    assert current.strategy["cosines"] == [[1, 1, None], [1, 1, None], [None, None, 1]]
    assert current.strategy["edges"] == {"edge-0": ["a", "b"], "edge-1": ["c"]}
    run_round(run, 2)
    assert value(run.arrays) == 16
    assert [draw for draw, _ in run.mode.seen] == [1, 2, 3, 4]


def test_the_edges_may_weigh_otherwise_than_the_cloud() -> None:
    sizes, moves = {"a": 1, "b": 1, "c": 2}, {"a": 4.0, "b": 8.0, "c": -1.0}
    edges = EdgeCloud(1, members={"left": ["a", "b"], "right": ["c"]})
    run = federation(sizes, moves, FedAW(), edges, edge_strategy=FedAvg())
    current = run_round(run, 1)
    # At the edge the mean, 6. In the cloud the right edge stands against the mean update and counts for less.
    assert current.strategy["c"] == {"a": 0.5, "b": 0.5, "c": 1.0}
    assert current.strategy["cloud"]["c"]["right"] < 0.1
    assert value(run.arrays) == pytest.approx(
        6 * current.strategy["cloud"]["c"]["left"] - current.strategy["cloud"]["c"]["right"]
    )


class Opinions:
    """Shared images that show a model to be right of zero or left of it."""

    def open(self) -> None: ...

    def embeddings(self, states: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {
            name: torch.tensor([1.0, 0.0] if state["w"] > 0 else [0.0, 1.0]) + 0.01 * state["w"]
            for name, state in states.items()
        }


def test_clusters_have_models_of_their_own() -> None:
    """a (+4, 1 example), b (+8, 3) and e (+7, 4) agree, c (-2, 1) and d (-4, 1) agree: (4 + 24 + 28) / 8 = 7 and -3.

    Then b changes sides: its model is 7 - 9 = -2, those of c and d -5 and -7. What the three share is the mean of these
    models, (3·(-2) - 5 - 7) / 5 = -3.6: where they started, (3·7 - 3 - 3) / 5 = 3, and what they did,
    (3·(-9) - 2 - 4) / 5 = -6.6.
    """
    sizes, moves = {"a": 1, "b": 3, "c": 1, "d": 1, "e": 4}, {"a": 4.0, "b": 8.0, "c": -2.0, "d": -4.0, "e": 7.0}
    run = federation(sizes, moves, FedAvg(), Finch(Opinions()))
    current = run_round(run, 1)
    assert current.clusters == {"cluster-0": ["a", "b", "e"], "cluster-1": ["c", "d"]}
    assert {name: value(run.cohorts[name]) for name in "abcde"} == {"a": 7, "b": 7, "c": -3, "d": -3, "e": 7}
    with pytest.raises(ValueError, match="2 models"):
        _ = run.arrays
    run.mode.moves = {**moves, "b": -9.0}
    current = run_round(run, 2)
    assert current.clusters == {"cluster-0": ["a", "e"], "cluster-1": ["b", "c", "d"]}
    assert {name: value(run.cohorts[name]) for name in "bcd"} == dict.fromkeys("bcd", pytest.approx(-3.6))


def test_who_did_not_train_is_placed_by_its_latest_embedding() -> None:
    names = {"a": 1, "b": 1, "c": 1, "d": 1}
    run = federation(names, {"a": 4.0, "b": 8.0, "c": -2.0, "d": -4.0}, FedAvg(), Finch(Opinions()))
    run_round(run, 1)
    run.mode.moves = {"a": 1.0, "b": 1.0}
    current = run_round(run, 2)
    assert current.clusters == {"cluster-0": ["a", "b"], "cluster-1": ["c", "d"]}
    assert {name: value(run.cohorts[name]) for name in "abcd"} == {"a": 7, "b": 7, "c": -3, "d": -3}


def test_a_stale_update_counts_for_what_its_scale_leaves() -> None:
    """Started at 10, trained to 14, scaled by a half: on a base of 20 it is 22; the mean with a fresh +6 is 24."""
    stale = Update("a", reply(1, model(14.0), 1), model(10.0), staleness=3, scale=0.5)
    base = model(20.0)
    fresh = Update("b", reply(2, model(26.0), 1), base)
    strategy = FedAvg()
    strategy.client_names = {1: "a", 2: "b"}
    current = Round(round=1)
    arrays = combine(current, strategy, base, [stale, fresh])
    assert value(arrays) == 24


@pytest.mark.parametrize(
    ("edges", "of"),
    [
        (1, {"a": "edge-0", "b": "edge-0", "c": "edge-0"}),
        (2, {"a": "edge-0", "b": "edge-0", "c": "edge-1"}),
        (3, {"a": "edge-0", "b": "edge-1", "c": "edge-2"}),
        ({"left": ["a", "c"], "right": ["b"]}, {"a": "left", "b": "right", "c": "left"}),
    ],
)
def test_edges_of(edges: Any, of: dict[str, str]) -> None:
    assert edges_of(["a", "b", "c"], *((edges, None) if isinstance(edges, int) else (2, edges))) == of


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        (0, "topology.edges=0: expected 1 to 3"),
        (4, "topology.edges=4: expected 1 to 3"),
        ({"left": ["a", "x"]}, "topology.members.left=x: no such client"),
        ({"left": ["a", "b"], "right": ["b", "c"]}, "topology.members.right=b: it belongs to left too"),
        ({"left": ["a"]}, "client b belongs to no edge"),
    ],
)
def test_edges_that_are_none(edges: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        edges_of(["a", "b", "c"], *((edges, None) if isinstance(edges, int) else (2, edges)))


def test_a_mean_of_models() -> None:
    first = model(1.0, 2.0)
    assert mean([first, first], [1, 3]) is first
    found = mean([model(1.0, 2.0), model(5.0, 6.0)], [1, 3])
    assert (value(found), value(found, "bn.running_mean")) == (4.0, 5.0)
    assert found["w"].dtype == "float32"


def test_a_rule_that_cannot_aggregate_ends_the_run_in_one_line() -> None:
    class Picky(FedAvg):
        def aggregate(self, *_: Any) -> Any:
            raise ValueError("3 replies, expected at least 7")

    with pytest.raises(RunFailed, match="round 2: Picky: 3 replies, expected at least 7"):
        combine(Round(round=2), Picky(), model(0.0), [])


def part(names: Sequence[str], loss: float, conflicting: float) -> Round:
    current = Round(round=1)
    current.train = {"clients": {name: {"num-examples": 2, "loss": loss} for name in names}}
    current.strategy = {
        "clients": list(names),
        "psi": dict.fromkeys(names, 1 / len(names)),
        "cosines": [[1.0 if a == b else 0.5 for b in names] for a in names],
        "conflicting": conflicting,
        "conflicting_per_tensor": {"w": conflicting},
        "mean_cosine": 0.5 if len(names) > 1 else None,
        "smallest_cosine": 0.5 if len(names) > 1 else None,
    }
    return current


def test_what_several_aggregations_tell_becomes_one_account() -> None:
    current = Round(round=1)
    merge(current, [part("ac", 1.0, 1.0), part("bde", 4.0, 0.0)])
    assert list(current.train["clients"]) == ["a", "b", "c", "d", "e"]
    assert current.train["loss"] == pytest.approx((2 * 1 + 3 * 4) / 5)
    assert current.strategy["clients"] == ["a", "b", "c", "d", "e"]
    assert current.strategy["cosines"][0] == [1.0, None, 0.5, None, None]
    assert current.strategy["conflicting"] == pytest.approx(1 / 4)  # one pair of 1 + 3
    assert current.strategy["mean_cosine"] == current.strategy["smallest_cosine"] == 0.5


def test_a_cluster_goes_on_from_where_it_stands_when_a_stale_update_arrives() -> None:
    """Both stand at 20; b's +6 is fresh, a's +4 started at 10 and counts half: 20 + (2 + 6) / 2 = 24, not from 15."""
    run = federation({"a": 1, "b": 1}, {}, FedAvg(), Finch(Opinions()))
    base = model(20.0)
    run.cohorts.regroup({"cluster-0": base}, {"a": "cluster-0", "b": "cluster-0"})
    stale = Update("a", reply(1, model(14.0), 1), model(10.0), staleness=3, scale=0.5)
    fresh = Update("b", reply(2, model(26.0), 1), base)
    run.mode = SimpleNamespace(updates=lambda *_: [stale, fresh])
    run_round(run, 4)
    assert value(run.arrays) == 24


def test_an_edge_round_that_fails_leaves_the_model_of_the_last_whole_round() -> None:
    run = federation({"a": 1, "b": 1}, {"a": 4.0, "b": 8.0}, FedAvg(), EdgeCloud(2, 2))
    moves = run.mode.updates
    calls: list[int] = []

    def updates(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RunFailed("stopped")
        return moves(*args)

    run.mode = SimpleNamespace(updates=updates)
    with pytest.raises(RunFailed, match="stopped"), run.cohorts.restored_on_failure():
        run_round(run, 1)
    assert value(run.arrays) == 0
