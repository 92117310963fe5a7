"""From the updates of a round to a model: one strategy, on updates brought to one starting model."""

from collections.abc import Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, Message

from fedgh_app.errors import RunFailed
from fedgh_app.runs.history import Round
from fedgh_app.server.federation import GLOBAL, Federation, Update
from strategies.diagnostics import MOST_COMPARED, Diagnostics
from strategies.fedavg import FedAvg
from strategies.rebase import rebase
from strategies.updates import labels


def replies_of(updates: Sequence[Update], base: ArrayRecord) -> list[Message]:
    """The replies as if all had started from ``base``, each scaled by what its staleness leaves of it."""
    return [rebase(update.reply, update.start, base, update.scale) for update in updates]


def combine(current: Round, strategy: FedAvg, base: ArrayRecord, updates: Sequence[Update]) -> ArrayRecord:
    """The strategy's next model, from updates in the order of names brought to ``base``; notes on the round what
    clients reported and what the strategy saw. Raises RunFailed where the rule cannot aggregate them.
    """
    replies = replies_of(updates, base)
    try:
        arrays, metrics = strategy.aggregate(current.round, base, replies)
    except ValueError as error:
        raise RunFailed(f"round {current.round}: {type(strategy).__name__}: {error}") from error
    if arrays is None:
        raise RunFailed(f"round {current.round}: {type(strategy).__name__} found no reply to aggregate")
    measured = [dict(next(iter(reply.content.metric_records.values()))) for reply in replies]
    names = labels([update.client for update in updates])
    current.train = {"clients": dict(zip(names, measured, strict=True)), **dict(metrics or {})}
    current.strategy |= strategy.diagnostics
    return arrays


def completed(
    federation: Federation,
    current: Round,
    base: ArrayRecord,
    proposed: ArrayRecord,
    updates: Sequence[Update],
    cohort: str = GLOBAL,
) -> ArrayRecord:
    """What the federation's parts make of the strategy's model; see `Part.after_aggregation`."""
    for part in federation.parts.values():
        proposed = part.after_aggregation(current, base, proposed, updates, cohort)
    return proposed


def mean(models: Sequence[ArrayRecord], sizes: Sequence[int]) -> ArrayRecord:
    """The mean of models weighted by ``sizes``; integer buffers their maximum. The model itself where all are one."""
    first = models[0]
    if all(model is first for model in models):
        return first
    total = sum(sizes)
    result = ArrayRecord()
    for key in first:
        values = [model[key].numpy() for model in models]
        if values[0].dtype.kind == "f":
            summed = sum(size / total * value.astype("float64") for size, value in zip(sizes, values, strict=True))
            result[key] = Array(summed.astype(values[0].dtype))  # type: ignore[union-attr]  # of one model at least
        else:
            result[key] = Array(max(values, key=lambda value: value.max()))
    return result


def merge(current: Round, parts: Sequence[Round]) -> None:
    """Put what several aggregations of one round noted into one: by client as it is, the rest weighted by examples."""
    clients: dict[str, dict[str, Any]] = {}
    for part in parts:
        clients |= part.train.get("clients", {})
    clients = dict(sorted(clients.items()))
    examples = {name: values["num-examples"] for name, values in clients.items()}
    total = sum(examples.values())
    shared = set.intersection(*(set(values) for values in clients.values())) - {"num-examples"}
    current.train = {
        "clients": clients,
        **{key: sum(examples[name] * clients[name][key] for name in clients) / total for key in sorted(shared)},
    }
    diagnostics = [part.strategy for part in parts]
    if len(diagnostics) == 1:
        current.strategy |= diagnostics[0]
    else:
        current.strategy |= {"round": current.round, **_merged(list(clients), diagnostics)}


def _merged(names: Sequence[str], diagnostics: Sequence[Diagnostics]) -> Diagnostics:
    """The diagnostics of several aggregations as those of one, over the clients named."""
    merged: Diagnostics = {"clients": list(names)}
    for key in ("examples", "psi", "c", "update_norms"):
        values = {name: value for one in diagnostics for name, value in one.get(key, {}).items()}
        if values:
            merged[key] = {name: values[name] for name in names if name in values}
    if still := [name for one in diagnostics for name in one.get("standing_still", ())]:
        merged["standing_still"] = sorted(still)
    if all("cosines" in one for one in diagnostics) and len(names) <= MOST_COMPARED:
        merged["cosines"] = _merged_cosines(names, diagnostics)
    if all("conflicting" in one for one in diagnostics):
        merged |= _merged_conflicts(diagnostics)
    return merged


def _merged_cosines(names: Sequence[str], diagnostics: Sequence[Diagnostics]) -> list[list[float | None]]:
    """One matrix; pairs of different aggregations are not compared and hold None."""
    place = {name: number for number, name in enumerate(names)}
    matrix: list[list[float | None]] = [[None] * len(names) for _ in names]
    for one in diagnostics:
        for name, row in zip(one["clients"], one["cosines"], strict=True):
            for other, value in zip(one["clients"], row, strict=True):
                matrix[place[name]][place[other]] = value
    return matrix


def _merged_conflicts(diagnostics: Sequence[Diagnostics]) -> Diagnostics:
    """Shares of conflicting pairs and mean cosines, weighted by the pairs of each aggregation."""
    merged: Diagnostics = {}
    pairs = [len(one["clients"]) * (len(one["clients"]) - 1) / 2 for one in diagnostics]
    each = list(zip(pairs, diagnostics, strict=True))
    if total := sum(pairs):
        merged["conflicting"] = sum(n * one["conflicting"] for n, one in each) / total
        merged["conflicting_per_tensor"] = {
            key: sum(n * one["conflicting_per_tensor"][key] for n, one in each) / total
            for key in diagnostics[0]["conflicting_per_tensor"]
        }
        compared = [(n, one["mean_cosine"]) for n, one in each if one["mean_cosine"] is not None]
        if compared:
            merged["mean_cosine"] = sum(n * cosine for n, cosine in compared) / sum(n for n, _ in compared)
    cosines = [one["smallest_cosine"] for one in diagnostics if one["smallest_cosine"] is not None]
    merged["smallest_cosine"] = min(cosines, default=None)
    return merged
