"""Rules for federations in which some clients may lie: Flower's, on updates, in the dtypes of the model that was sent.

Krum and Multi-Krum choose clients, so they are weights like any other rule here. The median, the trimmed mean and
Bulyan look at every coordinate on its own: no client has a weight, and there is neither ψ nor c to tell.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from torch import Tensor

from strategies.diagnostics import Diagnostics, describe_geometry
from strategies.fedavg import FedAvg
from strategies.options import at_least
from strategies.updates import ClientUpdates
from strategies.weights import Weights

# From one column for each coordinate, (K, n), to one number each, (n,).
CoordinateRule = Callable[[np.ndarray], np.ndarray]


def central(gramian: Tensor, malicious: int, count: int) -> Tensor:
    """Return which updates Krum chooses, the most central first, (count,) indices.

    The score of an update is the sum of its squared distances to the n - f - 2 updates nearest to it; the lowest are
    chosen, the first of equal ones. From the Gramian alone: ``|Δ_i - Δ_j|² = G[i,i] + G[j,j] - 2 G[i,j]``.

    Parameters
    ----------
    gramian : (n, n) inner products of the updates; who has one that is not finite is far from everybody.
    malicious : f.
    count : how many to choose.
    """
    squared = gramian.diagonal()
    distances = (squared.unsqueeze(1) + squared - 2 * gramian).nan_to_num(torch.inf, torch.inf, torch.inf)
    distances = distances.clamp(min=0.0).fill_diagonal_(torch.inf)
    nearest = distances.sort(dim=1).values[:, : len(gramian) - malicious - 2]
    return nearest.sum(1).argsort(stable=True)[:count]


class Krum(FedAvg):
    """Krum (Blanchard et al., "Machine Learning with Adversaries", 2017): the update nearest to its neighbours.

    Distances run over parameters only, as all geometry here. The chosen client's running statistics are
    taken with its parameters.

    Parameters
    ----------
    num_malicious_nodes : f, how many of the n clients may lie; it takes n >= 2 f + 3 replies.
    """

    needs_gramian = True
    num_nodes_to_select: int | None = 1

    def __init__(self, *args: Any, num_malicious_nodes: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.num_malicious_nodes = at_least("num_malicious_nodes", num_malicious_nodes, 0)

    def weigh(self, server_round: int, updates: ClientUpdates) -> Weights:
        """Weight the chosen updates by examples, the others 0."""
        n, f = len(updates), self.num_malicious_nodes
        count = self.num_nodes_to_select or n - f - 2
        _enough(self, n, max(2 * f + 3, count))
        chosen = torch.zeros(n, dtype=torch.float64)
        chosen[central(updates.products.sum(0), f, count)] = 1.0
        weights = chosen * updates.examples if (chosen * updates.examples).any() else chosen
        weights = weights / weights.sum()
        return Weights(convex=weights, combination=weights)


class MultiKrum(Krum):
    """Multi-Krum (Blanchard et al., "Machine Learning with Adversaries", 2017): the mean of the most central updates.

    Parameters
    ----------
    num_nodes_to_select : how many to average, by examples; None: n - f - 2, the most for which the paper's proof holds.
    """

    def __init__(self, *args: Any, num_nodes_to_select: int | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        if num_nodes_to_select is not None:
            at_least("num_nodes_to_select", num_nodes_to_select, 1)
        self.num_nodes_to_select = num_nodes_to_select


class CoordinateWise(FedAvg):
    """Base of the rules that look at every coordinate of the clients' models on its own."""

    @abstractmethod
    def rule(self, updates: ClientUpdates) -> CoordinateRule:
        """Return what becomes of the clients' values of a coordinate in this round."""

    def next_model(self, server_round: int, updates: ClientUpdates) -> tuple[ArrayRecord, Diagnostics]:
        """Move each parameter by the rule's step; running statistics are the rule of the clients' own."""
        arrays = updates.reduce(self.rule(updates), learning_rate=self.server_learning_rate)
        if (self.needs_gramian or self.report_conflicts) and updates.comparable:
            return arrays, describe_geometry(updates, self.conflict_threshold)
        return arrays, {}


class FedMedian(CoordinateWise):
    """Coordinate-wise median (Yin et al., "Byzantine-Robust Distributed Learning", 2018)."""

    def rule(self, updates: ClientUpdates) -> CoordinateRule:
        """Return the median; of an even number of values the mean of the middle two."""
        return partial(np.median, axis=0)


class FedTrimmedAvg(CoordinateWise):
    """Coordinate-wise trimmed mean (Yin et al., "Byzantine-Robust Distributed Learning", 2018).

    Parameters
    ----------
    beta : share of the values cut off at each end, in [0, 0.5). Of n replies these are ⌊β n⌋: below 1/n nothing is cut.
    """

    def __init__(self, *args: Any, beta: float = 0.2, **options: Any) -> None:
        super().__init__(*args, **options)
        if not 0 <= beta < 0.5:
            raise ValueError(f"beta is a share in [0, 0.5), got {beta}")
        self.beta = beta

    def rule(self, updates: ClientUpdates) -> CoordinateRule:
        """Return the mean of the values that are left."""
        return partial(trim_mean, cut_fraction=self.beta)


class Bulyan(CoordinateWise):
    """Bulyan (El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium", 2018).

    Multi-Krum chooses θ = n - 2 f clients, at once as in Flower; then each coordinate is the mean of the
    θ - 2 f values nearest to their median.

    Parameters
    ----------
    num_malicious_nodes : f, how many of the n clients may lie; it takes n >= 4 f + 3 replies.
    """

    needs_gramian = True

    def __init__(self, *args: Any, num_malicious_nodes: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.num_malicious_nodes = at_least("num_malicious_nodes", num_malicious_nodes, 0)

    def rule(self, updates: ClientUpdates) -> CoordinateRule:
        """Return the mean of the chosen clients' values around their median."""
        n, f = len(updates), self.num_malicious_nodes
        _enough(self, n, 4 * f + 3)
        theta = n - 2 * f
        chosen = central(updates.products.sum(0), f, theta).numpy()

        def nearest_to_median(values: np.ndarray) -> np.ndarray:
            kept = values[chosen]
            (result,) = aggregate_n_closest_weights([np.median(kept, axis=0)], [[row] for row in kept], theta - 2 * f)
            return result

        return nearest_to_median


def _enough(rule: FedAvg, replies: int, needed: int) -> None:
    if replies < needed:
        settings = {key: value for key, value in vars(rule).items() if key.startswith("num_")}
        told = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise ValueError(f"{type(rule).__name__} with {told} needs {needed} replies, got {replies}")
