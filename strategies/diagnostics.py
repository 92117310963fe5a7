"""What a round tells about its clients: weights, and from a Gramian cosines, norms and conflicts."""

from typing import Any

from torch import Tensor

from strategies import gramian as gram
from strategies.updates import ClientUpdates
from strategies.weights import Weights

Diagnostics = dict[str, Any]

# Beyond so many updates the matrix of cosines is left out: it grows with their square in every line of a history,
# and no picture could show it.
MOST_COMPARED = 50


def describe_clients(server_round: int, updates: ClientUpdates) -> Diagnostics:
    """Return the round, the labels of the updates in order, and the examples behind each; all JSON-able."""
    return {"round": server_round, "clients": list(updates.labels), "examples": _per_update(updates, updates.examples)}


def describe_weights(updates: ClientUpdates, weights: Weights) -> Diagnostics:
    """Return ψ and c of each update; JSON-able.

    Where c has one row for each tensor, its mean over the tensors, weighted by their sizes, is given: the
    share that the client's update has in an average parameter.
    """
    combination = weights.combination
    if combination.ndim == 2:
        combination = updates.sizes @ combination / updates.sizes.sum().clamp(min=1.0)
    return {"psi": _per_update(updates, weights.convex), "c": _per_update(updates, combination)}


def describe_geometry(updates: ClientUpdates, threshold: float) -> Diagnostics:
    """Return how the updates lie to each other; all JSON-able.

    cosines : (K, K) nested lists in the order of ``clients``; 0 for a zero update. Only up to `MOST_COMPARED` updates.
    mean_cosine, smallest_cosine : over pairs of non-zero updates, None without one.
    conflicting : share of the pairs with a cosine below the threshold, whole model.
    conflicting_per_tensor : the same, for each parameter tensor.
    update_norms : |Δ_k| of each update.
    """
    whole, tensors = updates.gramian, updates.gramians
    per_tensor = gram.conflicting_fraction(tensors, threshold)
    summary = gram.summarise_cosines(whole)
    matrix = {"cosines": gram.cosines(whole).tolist()} if len(updates) <= MOST_COMPARED else {}
    return {
        **matrix,
        "mean_cosine": summary.mean,
        "smallest_cosine": summary.smallest,
        "conflicting": gram.conflicting_fraction(whole, threshold).item(),
        "conflicting_per_tensor": dict(zip(updates.parameters, per_tensor.tolist(), strict=True)),
        "update_norms": _per_update(updates, whole.diagonal().clamp(min=0.0).sqrt()),
    }


def describe_norms(updates: ClientUpdates, weights: Weights) -> Diagnostics:
    """Return |Σ ψ_k Δ_k| and |Σ c_k Δ_k|, the latter before any rescaling, as ``norm_before``, ``norm_after``."""
    projected = weights.combination if weights.projected is None else weights.projected
    norms = gram.norm(updates.gramians if projected.ndim == 2 else updates.gramian, projected)
    return {
        "norm_before": gram.norm(updates.gramian, weights.convex).item(),
        "norm_after": norms.square().sum().sqrt().item(),
    }


def _per_update(updates: ClientUpdates, values: Tensor) -> dict[str, float]:
    return dict(zip(updates.labels, values.tolist(), strict=True))
