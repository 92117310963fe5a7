"""What the clients measure on their own test images, and what that says of all of them together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedgh_app.runs.history import Measured, MeasuredByClients
from fedgh_app.server.exchange import Exchange, metrics_by_client
from fedgh_app.server.selection import draw
from fedgh_app.task import Task
from fedgh_app.vision.tally import Tally
from strategies.randomness import generator


def evaluate_clients(exchange: Exchange) -> None:
    """Let the clients that have test images, and do not train just now, test their model on them: all of these, or
    the share ``evaluate.clients_fraction``, drawn anew each time. After the last round those that train count as well.
    """
    federation, current = exchange.federation, exchange.round
    settings, clients = federation.settings, federation.clients
    if not federation.due(settings.evaluate.clients_every, current.round):
        return
    free = list(clients) if current.round == settings.rounds else federation.mode.idle(clients)
    able = [name for name in exchange.present(free) if clients[name].test_examples]
    with current.timed("evaluate_clients"):
        asked = drawn(able, settings.evaluate.clients_fraction, settings.seed, current.round)
        answers = exchange.evaluate(asked, "test")
        if len({clients[name].predicts for name in able}) == 1:  # Flower averages only what all reported
            federation.client_strategy.aggregate_evaluate(current.round, [answer.reply for answer in answers])
    exchange.note()
    if answers:
        current.evaluate.clients = measured_by_clients(federation.task, metrics_by_client(answers))


def drawn(names: Sequence[str], fraction: float, seed: int, server_round: int) -> list[str]:
    """This share of the named clients, at least one, in the order of names."""
    if fraction == 1 or not names:
        return list(names)
    source = generator(seed, "evaluate", server_round)
    return sorted(draw(dict.fromkeys(names, 1.0), max(1, round(fraction * len(names))), source))


def measured_by_clients(task: Task, metrics: Mapping[str, Mapping[str, Any]]) -> MeasuredByClients:
    """The evaluations of one client or more, from what each reported, in the order of names: each, all their test
    images pooled, and how the clients differ.
    """
    tallies = {name: Tally.from_scalars(values, task.bounds) for name, values in metrics.items()}
    each = {
        name: Measured.of(task.scores(tally), loss=metrics[name]["loss"], examples=metrics[name]["num-examples"])
        for name, tally in tallies.items()
    }
    pooled = task.scores(sum(tallies.values(), Tally()))
    terms = sum(values["loss-terms"] for values in metrics.values())
    total = sum(values["loss-terms"] * values["loss"] for values in metrics.values())
    scores = {name: one.score for name, one in each.items() if one.score is not None}
    # Among equals the first name, so that the answer does not depend on the order of replies.
    worst = min(scores, key=lambda name: (scores[name], name), default=None)
    return MeasuredByClients.of(
        pooled,
        loss=total / terms if terms else None,
        examples=sum(one.examples for one in each.values()),
        weighted=weighted_mean(list(each.values())),
        std=float(np.fromiter(scores.values(), np.float64).std()) if scores else None,
        worst_client=worst,
        worst=None if worst is None else scores[worst],
        by_client=each,
    )


def weighted_mean(each: Sequence[Measured]) -> Measured:
    """Mean of the clients' own results, weighted by their test examples; each part over the clients that have it.

    The headline of a federation without a model of all clients. A client that a number does not exist for is not in
    its mean.
    """

    def mean(value_of: Callable[[Measured], float | None]) -> float | None:
        known = [(one.examples, value) for one in each if (value := value_of(one)) is not None]
        total = sum(examples for examples, _ in known)
        return sum(examples * value for examples, value in known) / total if total else None

    def means(group: str) -> dict[str, float | None]:
        names = dict.fromkeys(name for one in each for name in getattr(one, group))
        return {name: mean(lambda one, name=name: getattr(one, group).get(name)) for name in names}  # type: ignore[misc]

    return Measured(score=mean(lambda one: one.score), parts=means("parts"), more=means("more"))
