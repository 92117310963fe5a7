from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fedgh_app.federation import Round
from fedgh_app.tracking import Tracker, flatten


class Log:
    """Stands in for a W&B run; keeps what is logged."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log(self, values: dict[str, float], **_: Any) -> None:
        self.values |= values


def logged(this: Round, clients: int = 3) -> dict[str, float]:
    tracker = Tracker()
    tracker.run = Log()
    run: Any = SimpleNamespace(clients={str(number): None for number in range(clients)})
    tracker.after_round(run, this)
    return dict(tracker.run.values)


def test_numbers_are_flattened_and_words_and_matrices_left_out() -> None:
    tree = {"a": {"b": 1, "c": {"d": 2.5}}, "e": "word", "f": [[1.0]], "g": None, "h": True}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2.5}


def test_every_number_of_a_round_is_logged() -> None:
    this = Round(
        3,
        train={"loss": 2.0, "clients": {"0": {"loss": 1.0}}},
        strategy={"staleness": {"0": 0, "0#2": 4}, "dropped": 1, "c": {"0": 0.5}, "cosines": [[1.0, None]]},
        clusters={"0": ["0", "2"], "1": ["1"]},
        selection={"chosen": [["0"]], "asked": {"clients": ["0"], "bytes": 12}},
        distillation={"global": 0.25},
        privacy={"epsilon": 1.5, "releases": 3},
    )
    assert logged(this) == {
        "train/loss": 2.0,
        "train/clients/0/loss": 1.0,
        "strategy/staleness/0": 0,
        "strategy/staleness/0#2": 4,
        "strategy/dropped": 1,
        "strategy/c/0": 0.5,
        "clusters/count": 2,
        "clusters/of/0": 0,
        "clusters/of/2": 0,
        "clusters/of/1": 1,
        "selection/asked/bytes": 12,
        "distillation/global": 0.25,
        "privacy/epsilon": 1.5,
        "privacy/releases": 3,
    }


def test_of_many_clients_no_number_of_a_single_one_is_logged() -> None:
    """W&B makes a chart of every name: of a thousand clients, thousands."""
    by_client = {str(number): {"pck": 0.5, "per_keypoint": {"hip": 0.5}} for number in range(1000)}
    this = Round(
        3,
        train={"loss": 2.0, "clients": {"999": {"loss": 1.0}}},
        evaluate={"clients": {"pck": 0.5, "by_client": by_client}},
        strategy={"c": {"7": 0.5, "7#2": 0.1}, "conflicting": 0.25},
        clusters={"cluster-0": [str(number) for number in range(1000)]},
    )
    assert logged(this, 1000) == {
        "train/loss": 2.0,
        "clients/pck": 0.5,
        "strategy/conflicting": 0.25,
        "clusters/count": 1,
    }
    assert "clients/by_client/999/per_keypoint/hip" in logged(this, 50)


def test_axes_that_are_off_log_nothing() -> None:
    assert logged(Round(1, train={"loss": 2.0})) == {"train/loss": 2.0}
