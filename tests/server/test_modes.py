"""Asynchronous federations on the virtual clock, and what messages tell clients."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from recording import run

from fedgh_app.client_app import app as client_app
from fedgh_app.config.compose import compose_config
from fedgh_app.config.instantiation import instantiate
from fedgh_app.errors import RunFailed, UserError

SLOW = ["mode=async", "mode.buffer=2", "rounds=6", "++runtime.speeds.3=0.1", "evaluate.clients_every=0"]


def test_fast_clients_do_not_wait_for_a_slow_one(toy: list[str], tmp_path: Path) -> None:
    overrides = [*toy, *SLOW]
    done, grid = run(overrides, tmp_path / "async")
    _, waiting = run([item for item in overrides if not item.startswith("mode")], tmp_path / "sync")
    # The same number of updates (12, and 4 in each of 6 rounds): a third of the rounds' work, in far less than a third.
    assert grid.clock < waiting.clock / 6
    staleness = [line.strategy["staleness"] for line in done.history[1:]]
    assert all(len(found) == 2 for found in staleness)
    trained = Counter(label.split("#")[0] for found in staleness for label in found)
    assert trained["3"] <= 1
    assert min(trained[name] for name in "012") >= 3


def test_it_repeats_bit_for_bit(toy: list[str], tmp_path: Path) -> None:
    first, _ = run([*toy, *SLOW], tmp_path / "one")
    second, _ = run([*toy, *SLOW], tmp_path / "two")
    assert {k: v.data for k, v in first.arrays.items()} == {k: v.data for k, v in second.arrays.items()}


def test_staleness_counts_aggregations_and_scales_updates(toy: list[str], tmp_path: Path) -> None:
    """Clients 0 to 2 take 1 unit each, client 3 takes 2.5: worked out by hand for a buffer of 3.

    t = 1: 0, 1, 2 arrive and make round 1. Whoever arrives is sent on at once, so 0 and 1 go on from the first model,
    while 2, whose update fills the buffer, gets the next one. t = 2: the same again. t = 2.5: 3 arrives, two rounds
    after it started. t = 3: 0 and 1 fill the buffer.
    """
    speeds = ["++runtime.speeds.3=0.4", "partition=iid", "mode=async", "mode.buffer=3", "rounds=3"]
    done, _ = run([*toy, *speeds, "evaluate.clients_every=0", "strategy=fedavg"], tmp_path / "run")
    assert [line.strategy["staleness"] for line in done.history[1:]] == [
        {"0": 0, "1": 0, "2": 0},
        {"0": 1, "1": 1, "2": 0},
        {"0": 1, "1": 1, "3": 2},
    ]


def test_too_stale_updates_are_dropped_and_counted(toy: list[str], tmp_path: Path) -> None:
    speeds = [
        "++runtime.speeds.3=0.4",
        "partition=iid",
        "mode=async",
        "mode.buffer=3",
        "rounds=3",
        "mode.max_staleness=1",
    ]
    done, _ = run([*toy, *speeds, "evaluate.clients_every=0"], tmp_path / "run")
    assert [line.strategy["dropped"] for line in done.history[1:]] == [0, 0, 1]
    assert list(done.history[3].strategy["staleness"]) == ["0", "1", "2"]


def test_a_client_that_returns_twice_in_a_buffer_is_two_updates(toy: list[str], tmp_path: Path) -> None:
    speeds = [f"++runtime.speeds.{name}=0.01" for name in "123"]
    done, grid = run([*toy, "mode=async", "mode.buffer=3", "rounds=1", *speeds, "strategy=fedaw"], tmp_path / "run")
    assert list(done.history[1].strategy["staleness"]) == ["0", "0#2", "0#3"]
    assert set(done.history[1].strategy["psi"]) == {"0", "0#2", "0#3"}
    draws = [m.content["config"]["draw"] for m in grid.sent if "config" in m.content and "draw" in m.content["config"]]
    assert draws.count(1) == 4  # everybody's first
    assert {2, 3} <= set(draws)


def test_fewer_at_a_time_are_selected_among_the_idle(toy: list[str], tmp_path: Path) -> None:
    overrides = ["mode=async", "mode.buffer=1", "mode.concurrency=2", "rounds=4", "selection=power_of_choice"]
    done, _ = run([*toy, *overrides, "evaluate.clients_every=0"], tmp_path / "run")
    chosen = [names for line in done.history[1:] for names in line.selection["chosen"]]
    assert len(chosen[0]) == 2
    assert all(len(names) == 1 for names in chosen[1:])
    assert any("asked" in line.selection for line in done.history)


def test_who_fails_is_not_asked_again_before_the_next_aggregation(toy: list[str], tmp_path: Path) -> None:
    def faulty(message: Message, context: Any) -> Message:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            raise RuntimeError("out of memory")
        return client_app(message, context)

    done, _ = run(
        [*toy, "mode=async", "mode.buffer=3", "rounds=2", "evaluate.clients_every=0"], tmp_path / "run", faulty
    )
    assert [len(line.rejected) for line in done.history[1:]] == [1, 1]


def test_with_nobody_left_those_that_came_are_enough(toy: list[str], tmp_path: Path) -> None:
    """Clients 1 to 3 fail, client 0 answers once and then fails too: its one update makes the round."""

    def faulty(message: Message, context: Any) -> Message:
        if message.metadata.message_type == "train":
            draw = int(message.content["config"]["draw"])
            if context.node_config["partition-id"] or draw > 1:
                raise RuntimeError("out of memory")
        return client_app(message, context)

    overrides = [*toy, "mode=async", "mode.buffer=3", "evaluate.clients_every=0"]
    done, _ = run([*overrides, "rounds=1"], tmp_path / "one", faulty)
    assert list(done.history[1].strategy["staleness"]) == ["0"]
    assert len(done.history[1].rejected) == 4
    with pytest.raises(RunFailed, match="round 2: 0 good replies, expected at least 1"):
        run([*overrides, "rounds=2"], tmp_path / "two", faulty)
    with pytest.raises(RunFailed, match="round 1: 1 good replies, expected at least 2"):
        run([*overrides, "rounds=1", "min_clients=2"], tmp_path / "three", faulty)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mode.buffer=0", "mode.buffer=0: expected a whole number of at least 1"),
        ("mode.max_staleness=-1", "mode.max_staleness=-1: expected a whole number of at least 0"),
        ("mode.concurrency=0", "mode.concurrency=0: expected a whole number of at least 1, or null"),
        ("mode.staleness_exponent=-1", "mode.staleness_exponent=-1: expected a number of at least 0"),
    ],
)
def test_a_bad_value_is_named(override: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        instantiate(compose_config(["mode=async", override]).mode, "mode")
    assert words in str(error.value)


def test_what_clients_are_not_asked_they_do_not_measure(toy: list[str], tmp_path: Path) -> None:
    _, grid = run([*toy, "rounds=1"], tmp_path / "plain")
    trained = [reply.content["metrics"] for reply in grid.received if "arrays" in reply.content]
    assert all(set(metrics) == {"num-examples", "loss", "steps", "seconds"} for metrics in trained)
    _, grid = run([*toy, "rounds=1", "selection=oort", "strategy=fedcdw"], tmp_path / "asked")
    trained = [reply.content["metrics"] for reply in grid.received if "arrays" in reply.content]
    assert all({"loss-rms", "cosine-distance"} <= set(metrics) for metrics in trained)
