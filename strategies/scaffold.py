"""The server's side of SCAFFOLD: the control variate that tells clients which way the others drift."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from strategies import npy
from strategies.fedavg import State
from strategies.updates import number, only_arrays, only_metrics, parameters_of

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
    """

    def __init__(self, sent: Mapping[str, Array], num_clients: int) -> None:
        if num_clients < 1:
            raise ValueError(f"num_clients is at least 1, got {num_clients}")
        self.num_clients = num_clients
        self._control: dict[str, Tensor] = {}
        for tensor in parameters_of(sent):
            head = npy.header(sent[tensor])
            self._control[tensor] = torch.from_numpy(np.zeros(head.shape, npy.wide(head.dtype)))

    @property
    def arrays(self) -> ArrayRecord:
        """c, as clients are sent it."""
        return ArrayRecord({tensor: Array(control.numpy()) for tensor, control in self._control.items()})

    def absorb(self, start: Mapping[str, Array], replies: Sequence[Message], learning_rates: Sequence[float]) -> None:
        """Take the clients' changes Δc_k into c.

        Parameters
        ----------
        start : the model that these clients started from.
        replies : their messages, sent when c was what it is now. Sums are taken in the order given: that of the
            clients' names, for a run to repeat bit for bit.
        learning_rates : lr of each reply.

        Raises ``ValueError`` naming the node whose number of steps or learning rate is not positive.
        """
        trained = [only_arrays(_node(reply), reply) for reply in replies]
        lengths = [_length(reply, rate) for reply, rate in zip(replies, learning_rates, strict=True)]
        for tensor, control in self._control.items():
            c, origin = control.view(-1).numpy(), npy.flat(start[tensor])
            change = -len(replies) * c
            for arrays, length in zip(trained, lengths, strict=True):
                change -= np.subtract(npy.flat(arrays[tensor]), origin, dtype=c.dtype) / length
            c += change / self.num_clients

    def state_dict(self) -> State:
        """Return c by tensor."""
        return {tensor: control.clone() for tensor, control in self._control.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the c that :meth:`state_dict` returned."""
        self._control = {tensor: control.clone() for tensor, control in state.items()}


def _node(reply: Message) -> str:
    return str(reply.metadata.src_node_id)


def _length(reply: Message, learning_rate: float) -> float:
    """Return how far a client could go, steps · lr."""
    name = _node(reply)
    steps = number(name, only_metrics(name, reply), STEPS)
    if steps <= 0 or learning_rate <= 0:
        raise ValueError(f"node {name}: {steps:g} steps of learning rate {learning_rate:g}, expected both > 0")
    return steps * learning_rate
