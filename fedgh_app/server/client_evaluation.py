"""What the clients find on their own test images, and what that says of all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedgh_app.grids.screening import ScreeningGrid
from fedgh_app.pose.evaluation.metrics import spread
from fedgh_app.pose.evaluation.tally import Tally
from fedgh_app.server.federation import Federation, Round
from fedgh_app.server.modes import book, evaluation_messages, reply_metrics
from fedgh_app.server.selection import draw
from strategies.randomness import generator


def evaluate_clients(run: Federation, grid: ScreeningGrid, this: Round) -> None:
    """Let the clients that have test images, and do not train just now, test their model on them: all of these, or
    the share ``evaluate.clients_fraction``, drawn anew each time.

    After the last round nobody's training is waited for any more, and those count as well.
    """
    if not run.due(run.config.evaluate.clients_every, this.round):
        return
    free = list(run.clients) if this.round == run.config.rounds else run.mode.idle(run)
    grid.refresh()
    absent = grid.absent(run.clients)
    able = [name for name in free if run.clients[name].test_examples and name not in absent]
    with this.timed("evaluate_clients"):
        messages = evaluation_messages(run, grid, this, drawn(run, able, this.round), "test")
        replies = list(grid.send_and_receive(messages, timeout=run.config.round_timeout))
        if len({run.clients[name].keypoints for name in able}) == 1:  # Flower averages only what all reported
            run.client_strategy.aggregate_evaluate(this.round, replies)
    book(grid, this)
    this.evaluate["clients"] = summary_of_clients(reply_metrics(grid, replies))


def drawn(run: Federation, names: Sequence[str], server_round: int) -> list[str]:
    """The share ``evaluate.clients_fraction`` of the named clients, at least one, in the order of names."""
    fraction = run.config.evaluate.clients_fraction
    if fraction == 1 or not names:
        return list(names)
    source = generator(run.config.seed, "evaluate", server_round)
    return sorted(draw(dict.fromkeys(names, 1.0), max(1, round(fraction * len(names))), source))


def summary_of_clients(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Metrics of each client, of all their test images pooled, and how the clients differ."""
    tallies = {name: Tally.from_scalars(values) for name, values in metrics.items()}
    if not tallies:
        return {}
    each = {
        name: {
            **tallies[name].summary(),
            "loss": metrics[name]["loss"],
            "examples": metrics[name]["num-examples"],
        }
        for name in tallies
    }
    pooled = sum(tallies.values(), Tally({}))
    terms = sum(values["loss-terms"] for values in metrics.values())
    weighed = sum(values["loss-terms"] * values["loss"] for values in metrics.values())
    differ = spread({name: values["pck"] for name, values in each.items()})
    return {
        **pooled.summary(),
        "loss": weighed / terms if terms else float("nan"),
        "weighted": weighted_mean(each),
        "std_pck": differ.std,
        "worst_client": differ.worst_client,
        "worst_pck": differ.worst,
        "by_client": each,
    }


def weighted_mean(each: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of the clients' own results, weighted by their test examples; each keypoint over the clients that have it.

    The headline of a federation without a model of all clients. A client that a number does not exist for is not in
    its mean.
    """

    def mean(found: Iterable[float]) -> float:
        sizes = (values["examples"] for values in each.values())
        known = [(size, value) for size, value in zip(sizes, found, strict=True) if not math.isnan(value)]
        total = sum(examples for examples, _ in known)
        return sum(examples * value for examples, value in known) / total if total else math.nan

    keypoints = dict.fromkeys(name for values in each.values() for name in values["per_keypoint"])
    return {
        **{key: mean(values[key] for values in each.values()) for key in ("pck", "auc", "heatmap_accuracy")},
        "per_keypoint": {
            name: mean(values["per_keypoint"].get(name, math.nan) for values in each.values()) for name in keypoints
        },
    }
