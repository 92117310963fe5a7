"""What the server makes of a round's proposal: a step of an optimizer instead of the proposal itself."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from strategies import npy
from strategies.fedavg import State
from strategies.threads import one_thread
from strategies.updates import parameters_of


class ServerOptimizer:
    """Adaptive federated optimization (Reddi et al., "Adaptive Federated Optimization", 2021), after any rule.

    A strategy proposes the next model; the difference to the model that was sent, ``sent - proposed`` (``-Σ c_k Δ_k``),
    is the gradient of one optimizer step from ``sent``. Momentum makes it FedAvgM (Hsu et al., 2019), Adam makes it
    FedAdam. Only parameters are stepped: running statistics and integer buffers are the proposal's.

    The arithmetic is float32 or wider. The optimizer lives from step to step, with one parameter for each tensor.

    Parameters
    ----------
    optimizer : makes a ``torch.optim`` optimizer from parameters, such as ``partial(torch.optim.SGD, lr=1)``.
    """

    def __init__(self, optimizer: Callable[[Iterable[Parameter]], Optimizer]) -> None:
        self._make = optimizer
        self._optimizer: Optimizer | None = None
        self._parameters: dict[str, Parameter] = {}
        self._restored: Mapping[str, Mapping[str, Any]] = {}

    @one_thread()
    def step(self, sent: Mapping[str, Array], proposed: ArrayRecord) -> ArrayRecord:
        """Return the model after one step, in the keys, shapes and dtypes of the proposal.

        Raises ``ValueError`` when the tensors are not those of the steps before.
        """
        optimizer = self._optimizer or self._start(sent)
        if self._parameters.keys() != set(parameters_of(sent)):
            differing = sorted(self._parameters.keys() ^ set(parameters_of(sent)))
            raise ValueError(f"server optimizer: tensors {differing[:3]} are not those of the steps before")
        for tensor, parameter in self._parameters.items():
            parameter.data = _tensor(sent[tensor])
            parameter.grad = parameter.data - _tensor(proposed[tensor])
        optimizer.step()
        optimizer.zero_grad()
        return ArrayRecord({tensor: self._stepped(tensor, array) for tensor, array in proposed.items()})

    def state_dict(self) -> State:
        """Return what the optimizer remembers of each tensor, by its name: tensors, numbers and None.

        Its settings are not state: they are those of the optimizer that was given.
        """
        if self._optimizer is None:
            return {tensor: dict(memory) for tensor, memory in self._restored.items()}
        state = self._optimizer.state
        return {tensor: _copied(state.get(parameter, {})) for tensor, parameter in self._parameters.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from a state that :meth:`state_dict` returned, bit for bit."""
        self._restored, self._optimizer = state, None

    def _start(self, sent: Mapping[str, Array]) -> Optimizer:
        self._parameters = {tensor: Parameter(_tensor(sent[tensor])) for tensor in parameters_of(sent)}
        optimizer = self._make(self._parameters.values())
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("server optimizer: LBFGS asks for several gradients a step, a round has one")
        if unknown := sorted(self._restored.keys() - self._parameters.keys()):
            raise ValueError(f"server optimizer: the restored state has unknown tensors {unknown[:3]}")
        for tensor, memory in self._restored.items():
            optimizer.state[self._parameters[tensor]] = _copied(memory)
        self._optimizer = optimizer
        return optimizer

    def _stepped(self, tensor: str, proposed: Array) -> Array:
        if tensor not in self._parameters:
            return proposed
        value, head = self._parameters[tensor].detach().numpy(), npy.header(proposed)

        def fill(out: np.ndarray) -> None:
            np.copyto(out, value.ravel(), casting="same_kind")

        return npy.filled(head.dtype, head.shape, fill)


def _tensor(array: Array) -> Tensor:
    """Return a floating array as a tensor of its own, float32 or wider."""
    head = npy.header(array)
    return torch.from_numpy(npy.flat(array).astype(npy.wide(head.dtype)).reshape(head.shape))


def _copied(memory: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in memory.items()}
