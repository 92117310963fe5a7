"""The server's side of SCAFFOLD: the control variate that tells clients which way the others drift."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from strategies import npy
from strategies.threads import one_thread
from strategies.updates import ClientUpdates, client_name, number, parameters_of

STEPS = "steps"


class ControlVariate:
    """SCAFFOLD's server control variate c (Karimireddy et al., "SCAFFOLD", 2020), option II.

    ``c ← c + (1/N) Σ_k Δc_k`` with ``Δc_k = -c - Δ_k / (steps_k · lr_k)``, which the server works out from an
    ordinary reply: the client's update Δ_k, its number of steps among the metrics (``steps``), and the
    learning rate that it was sent. No client sends a control variate.

    Parameters
    ----------
    sent : the model that clients train; c is over its parameters, zero at first, float32 or wider.
    num_clients : N, all clients of the federation, whether they take part in a round or not.

    Attributes
    ----------
    client_names : node id to client name; sums are taken in the order of the names.
    """

    def __init__(self, sent: Mapping[str, Array], num_clients: int) -> None:
        if num_clients < 1:
            raise ValueError(f"num_clients is at least 1, got {num_clients}")
        self.num_clients = num_clients
        self.client_names: dict[int, str] = {}
        self._control: dict[str, Tensor] = {}
        for tensor in parameters_of(sent):
            head = npy.header(sent[tensor])
            self._control[tensor] = torch.from_numpy(np.zeros(head.shape, npy.wide(head.dtype)))

    @property
    def arrays(self) -> ArrayRecord:
        """c, as clients are sent it."""
        return ArrayRecord({tensor: Array(control.numpy()) for tensor, control in self._control.items()})

    @one_thread()
    def absorb(self, start: Mapping[str, Array], replies: Sequence[Message], learning_rates: Sequence[float]) -> None:
        """Take the clients' changes Δc_k into c.

        Parameters
        ----------
        start : the model that these clients started from.
        replies : their messages, sent when c was what it is now.
        learning_rates : lr of each reply, in the order of the replies.

        Raises ``ValueError`` naming the client whose number of steps or learning rate is not positive.
        """
        pairs = sorted(
            zip(replies, learning_rates, strict=True), key=lambda pair: client_name(pair[0], self.client_names)
        )
        updates = ClientUpdates(start, [reply for reply, _ in pairs], client_names=self.client_names)
        lengths = [
            self._length(name, number(name, metrics, STEPS), learning_rate)
            for name, metrics, (_, learning_rate) in zip(updates.names, updates.metrics, pairs, strict=True)
        ]
        moved = updates.weighted_sum(1 / torch.tensor(lengths, dtype=torch.float64))
        for tensor, control in self._control.items():
            control -= (len(updates) * control + moved[tensor]) / self.num_clients

    def state_dict(self) -> dict[str, Any]:
        """Return c by tensor."""
        return {tensor: control.clone() for tensor, control in self._control.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the c that :meth:`state_dict` returned."""
        self._control = {tensor: control.clone() for tensor, control in state.items()}

    @staticmethod
    def _length(name: str, steps: float, learning_rate: float) -> float:
        if steps <= 0 or learning_rate <= 0:
            raise ValueError(f"client {name!r}: {steps:g} steps of learning rate {learning_rate:g}, expected both > 0")
        return steps * learning_rate
