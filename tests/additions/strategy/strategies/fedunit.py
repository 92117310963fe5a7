"""Updates of one length: no client counts more for having moved further."""

from strategies.fedavg import FedAvg
from strategies.updates import ClientUpdates
from strategies.weights import Weights


class FedUnit(FedAvg):
    """c_k = p_k · L / |Δ_k|, L being the mean length of the updates."""

    needs_gramian = True

    def weigh(self, server_round: int, updates: ClientUpdates) -> Weights:
        lengths = updates.gramian.diagonal().sqrt().clamp(min=1e-12)
        return Weights(convex=updates.shares, combination=updates.shares * lengths.mean() / lengths)
