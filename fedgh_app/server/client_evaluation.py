"""What the clients find on their own test images, and what that says of all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedgh_app.grids.screening import ScreeningGrid
from fedgh_app.pose.evaluation.metrics import spread
from fedgh_app.pose.evaluation.tally import Tally
from fedgh_app.runs.history import Measured, MeasuredByClients, Round
from fedgh_app.server.federation import Federation
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
    this.evaluate.clients = summary_of_clients(reply_metrics(grid, replies))


def drawn(run: Federation, names: Sequence[str], server_round: int) -> list[str]:
    """The share ``evaluate.clients_fraction`` of the named clients, at least one, in the order of names."""
    fraction = run.config.evaluate.clients_fraction
    if fraction == 1 or not names:
        return list(names)
    source = generator(run.config.seed, "evaluate", server_round)
    return sorted(draw(dict.fromkeys(names, 1.0), max(1, round(fraction * len(names))), source))


def summary_of_clients(metrics: Mapping[str, Mapping[str, Any]]) -> MeasuredByClients | None:
    """Metrics of each client, of all their test images pooled, and how the clients differ; None where nobody tested."""
    tallies = {name: Tally.from_scalars(values) for name, values in metrics.items()}
    if not tallies:
        return None
    each = {
        name: Measured.of(tally.scores(), loss=metrics[name]["loss"], examples=metrics[name]["num-examples"])
        for name, tally in tallies.items()
    }
    terms = sum(values["loss-terms"] for values in metrics.values())
    weighed = sum(values["loss-terms"] * values["loss"] for values in metrics.values())
    differ = spread({name: math.nan if found.score is None else found.score for name, found in each.items()})
    return MeasuredByClients.of(
        sum(tallies.values(), Tally({})).scores(),
        loss=weighed / terms if terms else None,
        examples=sum(found.examples for found in each.values()),
        weighted=weighted_mean(each),
        std=differ.std,
        worst_client=differ.worst_client,
        worst=differ.worst,
        by_client=each,
    )


def weighted_mean(each: Mapping[str, Measured]) -> Measured:
    """Mean of the clients' own results, weighted by their test examples; each part over the clients that have it.

    The headline of a federation without a model of all clients. A client that a number does not exist for is not in
    its mean.
    """

    def mean(values: Iterable[float | None]) -> float | None:
        sizes = (found.examples for found in each.values())
        known = [(size, value) for size, value in zip(sizes, values, strict=True) if value is not None]
        total = sum(examples for examples, _ in known)
        return sum(examples * value for examples, value in known) / total if total else None

    parts = dict.fromkeys(part for found in each.values() for part in found.parts)
    more = dict.fromkeys(name for found in each.values() for name in found.more)
    return Measured(
        score=mean(found.score for found in each.values()),
        parts={part: mean(found.parts.get(part) for found in each.values()) for part in parts},
        more={name: mean(found.more.get(name) for found in each.values()) for name in more},
    )
