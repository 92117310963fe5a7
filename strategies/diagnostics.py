"""What a round tells about its clients: weights always, and from a Gramian cosines, norms and conflicts."""

from typing import Any

from torch import Tensor

from strategies import gramian as gram
from strategies.updates import ClientUpdates
from strategies.weights import Weights

Diagnostics = dict[str, Any]


def describe_weights(server_round: int, updates: ClientUpdates, weights: Weights) -> Diagnostics:
    """Return the round, the clients in order, and per client their examples, ψ and c; all JSON-able.

    Where c has one row for each tensor, its mean over the tensors, weighted by their sizes, is given: the
    share that the client's update has in an average parameter.
    """
    combination = weights.combination
    if combination.ndim == 2:
        combination = updates.sizes @ combination / updates.sizes.sum().clamp(min=1.0)
    return {
        "round": server_round,
        "clients": list(updates.names),
        "examples": _per_client(updates, updates.examples),
        "psi": _per_client(updates, weights.convex),
        "c": _per_client(updates, combination),
    }


def describe_geometry(updates: ClientUpdates, weights: Weights, threshold: float) -> Diagnostics:
    """Return how the updates lie to each other and what the rule made of them; all JSON-able.

    cosines : (K, K) nested lists in the order of ``clients``; 0 for a zero update.
    mean_cosine, smallest_cosine : over pairs of non-zero updates, None without one.
    conflicting : share of the pairs with a cosine below the threshold, whole model.
    conflicting_per_tensor : the same, for each parameter tensor.
    update_norms : |Δ_k| per client.
    norm_before, norm_after : |Σ ψ_k Δ_k| and |Σ c_k Δ_k| before any rescaling.
    """
    whole, tensors = updates.gramian, updates.gramians
    per_tensor = gram.conflicting_fraction(tensors, threshold)
    summary = gram.summarise_cosines(whole)
    projected = weights.combination if weights.projected is None else weights.projected
    norms = gram.norm(tensors if projected.ndim == 2 else whole, projected)
    return {
        "cosines": gram.cosines(whole).tolist(),
        "mean_cosine": summary.mean,
        "smallest_cosine": summary.smallest,
        "conflicting": gram.conflicting_fraction(whole, threshold).item(),
        "conflicting_per_tensor": dict(zip(updates.parameters, per_tensor.tolist(), strict=True)),
        "update_norms": _per_client(updates, whole.diagonal().clamp(min=0.0).sqrt()),
        "norm_before": gram.norm(whole, weights.convex).item(),
        "norm_after": norms.square().sum().sqrt().item(),
    }


def _per_client(updates: ClientUpdates, values: Tensor) -> dict[str, float]:
    return dict(zip(updates.names, values.tolist(), strict=True))
