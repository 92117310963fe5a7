"""Cosine distance weight: clients whom training moved further count more."""

import torch
from flwr.app import ConfigRecord

from strategies.fedavg import FedAvg
from strategies.updates import ClientUpdates, number
from strategies.weights import Weights

REPORT = "report"
COSINE_DISTANCE = "cosine-distance"

# 1 - cos of equal float32 outputs may come out this much below 0.
_ROUNDING = 1e-5


class FedCDW(FedAvg):
    """Cosine distance weight (Zhuang et al., "Performance Optimization for Federated Person Re-identification", 2020).

    ``c_k = d_k / Σ d_j``, with d_k the mean cosine distance between a client's outputs before and after training on one
    batch of its own data. The client measures it only when asked: the train config lists ``cosine-distance`` under
    ``report``, and the reply's metrics hold it under that name. If nobody reports it, or all report 0, c = p.
    """

    def train_config(self, config: ConfigRecord) -> ConfigRecord:
        """Ask for the cosine distance, beside whatever else is asked for."""
        asked = config.get(REPORT, [])
        others = [str(item) for item in asked if item != COSINE_DISTANCE] if isinstance(asked, list) else []
        report: list[str] = [*others, COSINE_DISTANCE]
        return ConfigRecord({**config, REPORT: report})

    def weigh(self, server_round: int, updates: ClientUpdates) -> Weights:
        """Weight the updates by cosine distance."""
        if not any(COSINE_DISTANCE in metrics for metrics in updates.metrics):
            return Weights(convex=updates.shares, combination=updates.shares)
        reported = [
            number(name, metrics, COSINE_DISTANCE, tolerance=_ROUNDING)
            for name, metrics in zip(updates.names, updates.metrics, strict=True)
        ]
        distances = torch.tensor(reported, dtype=torch.float64)
        weights = distances / distances.sum() if distances.any() else updates.shares
        return Weights(convex=weights, combination=weights)
