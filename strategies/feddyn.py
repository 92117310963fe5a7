"""FedDyn, the server's side: averaging, corrected by what all clients together have drifted."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from strategies.fedavg import FedAvg, State
from strategies.options import one_of
from strategies.updates import ClientUpdates
from strategies.weights import Weights


class FedDyn(FedAvg):
    """Federated learning by dynamic regularisation (Acar et al., "Federated Learning Based on Dynamic
    Regularization", 2021).

    ``h ← h - (alpha/m) Σ_{k∈S} Δ_k``, then ``w⁺ = mean_{k∈S} w_k - h/alpha = w + Σ_{k∈S} Δ_k/|S| - h/alpha``. Only
    together with clients that minimise ``L_k(w) - <h_k, w> + (alpha/2) |w - w^t|²`` with the same alpha, and with
    updates that all started from w. Running statistics are averaged by examples; η scales the whole step.

    Parameters
    ----------
    alpha : alpha > 0, the weight of the clients' quadratic term.
    evaluate : what :meth:`evaluated` returns: ``model`` is w⁺, which clients are sent; ``mean`` is the mean of the
        round's clients' models, w⁺ + η h/alpha, as the authors' code has it. They differ while h is large.
    num_registered : m, how many clients there are, whether they take part in a round or not; fixed at the start. None:
        as many as have names, without names as many as are connected at the first ``configure_train``.
    """

    def __init__(
        self, *args: Any, alpha: float, evaluate: str = "model", num_registered: int | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.evaluate = one_of("evaluate", evaluate, ("model", "mean"))
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha is a number > 0, got {alpha}")
        if num_registered is not None and num_registered < 1:
            raise ValueError(f"num_registered is at least 1, or None for those that are there, got {num_registered}")
        self.alpha = alpha
        self.num_registered = num_registered
        self._h: dict[str, Tensor] = {}  # empty: zero

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model to the round's clients; the first time, count who is there."""
        messages = super().configure_train(server_round, arrays, config, grid)
        if self.num_registered is None:
            self.num_registered = len(self.client_names) or len(list(grid.get_node_ids()))
        return messages

    def weigh(self, server_round: int, updates: ClientUpdates) -> Weights:
        """Weight every update the same, and shift by -h/alpha."""
        self._absorb(updates)
        size = len(updates)
        return Weights(
            convex=updates.shares,
            combination=torch.full((size,), 1 / size, dtype=torch.float64),
            shift={tensor: -h / self.alpha for tensor, h in self._h.items()},
        )

    def evaluated(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return w⁺ or the mean of the clients' models, as ``evaluate`` says."""
        if self.evaluate == "model" or not self._h:
            return arrays
        shown = ArrayRecord(dict(arrays))
        for tensor, h in self._h.items():
            values = arrays[tensor].numpy()
            shift = (self.server_learning_rate / self.alpha * h).numpy()
            shown[tensor] = Array(np.asarray(values + shift, values.dtype))
        return shown

    def state_dict(self) -> State:
        """Return h by tensor, and m."""
        h = {tensor: value.clone() for tensor, value in self._h.items()}
        return {"h": h, "num_registered": self.num_registered}

    def load_state_dict(self, state: State) -> None:
        """Take up the h and the m that :meth:`state_dict` returned."""
        self._h = {tensor: value.clone() for tensor, value in state["h"].items()}
        self.num_registered = state["num_registered"]

    def _absorb(self, updates: ClientUpdates) -> None:
        m = self.num_registered = self.num_registered or len(self.client_names)
        if m < len(updates):
            raise ValueError(f"num_registered is {m}, but {len(updates)} clients replied: how many are there in all?")
        moved = updates.weighted_sum(torch.full((len(updates),), self.alpha / m, dtype=torch.float64))
        for tensor, step in moved.items():
            self._h[tensor] = self._h[tensor] - step if tensor in self._h else -step
