"""Federated adaptive weighting: clients that pull with the others count more."""

from typing import Any

import torch
from torch import Tensor

from strategies.fedavg import FedAvg, State
from strategies.updates import ClientUpdates
from strategies.weights import Weights

ALPHA = 5.0

# |g|² below this share of (Σ p_k |Δ_k|)² is the rounding of float32 updates that cancel: g has no direction.
_CANCELLED = 1e-12


def angles(gramian: Tensor, shares: Tensor) -> Tensor | None:
    """Return the angle in radians between each update and ``g = Σ p_k Δ_k``, (K,) in [0, π]; None where g = 0.

    From the Gramian alone: ``<g, Δ_k> = (G p)_k`` and ``|g|² = pᵀ G p``. A zero update stands at π/2.
    """
    inner = gramian @ shares
    squared = shares @ inner
    lengths = gramian.diagonal().clamp(min=0.0).sqrt()
    if squared <= _CANCELLED * (shares @ lengths) ** 2:
        return None
    cosines = (inner / (squared.sqrt() * lengths)).where(lengths > 0, 0.0)
    return cosines.clamp(-1.0, 1.0).arccos()


def gompertz(theta: Tensor, alpha: float = ALPHA) -> Tensor:
    """Map an angle to a contribution, ``a (1 - exp(-exp(-a (θ - 1))))``, from near a down to 0."""
    return alpha * (1 - torch.exp(-torch.exp(-alpha * (theta - 1))))


class FedAW(FedAvg):
    """Federated adaptive weighting (Wu & Wang, "Fast-Convergent Federated Learning with Adaptive Weighting", 2021).

    ``c_k = n_k exp f(θ̃_k) / Σ_j n_j exp f(θ̃_j)``, with f the Gompertz map and θ̃_k the angle between k's
    update and the mean update, averaged over the rounds in which k took part. A round whose mean update is
    zero shows no angle: it is weighted by examples and leaves the averages as they were.
    """

    needs_gramian = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._angles: dict[str, float] = {}  # θ̃, radians
        self._participations: dict[str, int] = {}  # s

    def weigh(self, server_round: int, updates: ClientUpdates) -> Weights:
        """Weight the updates by examples and smoothed angle."""
        weights = self.adaptive_weights(updates)
        return Weights(convex=weights, combination=weights)

    def adaptive_weights(self, updates: ClientUpdates) -> Tensor:
        """Return ψ, (K,), and take this round's angles into the averages."""
        theta = angles(updates.gramian, updates.shares)
        if theta is None:
            return updates.shares
        smoothed = torch.tensor(
            [self._smooth(name, angle) for name, angle in zip(updates.names, theta.tolist(), strict=True)],
            dtype=torch.float64,
        )
        contributions = updates.examples * gompertz(smoothed).exp()
        return contributions / contributions.sum()

    def _smooth(self, name: str, angle: float) -> float:
        s = self._participations.get(name, 0) + 1
        self._angles[name] = ((s - 1) * self._angles.get(name, 0.0) + angle) / s
        self._participations[name] = s
        return self._angles[name]

    def state_dict(self) -> State:
        """Return θ̃ and s per client name."""
        return {"angles": dict(self._angles), "participations": dict(self._participations)}

    def load_state_dict(self, state: State) -> None:
        """Take up θ̃ and s per client name."""
        angles, participations = dict(state["angles"]), dict(state["participations"])
        if angles.keys() != participations.keys():
            raise ValueError("angles and participations in the state name different clients")
        self._angles, self._participations = angles, participations
