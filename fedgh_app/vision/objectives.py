"""What a client minimises: its loss, and a term of the parameters that ties it to the federation.

Notation: w the parameters in training, w^t the model as the client received it, Δ_k = w_k - w^t what client k's
training made of it. Every objective acts on the names in ``Received.parameters`` alone; buffers, and parameters
that stay on the client, are trained as if there were no federation.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from fedgh_app.errors import UserError

Penalty = Callable[[nn.Module], Tensor]


@dataclass(frozen=True, eq=False)
class Received:
    """What a client knows of the federation when its training starts, each by the parameter's name.

    Attributes:
        parameters: w^t, the shared trainable parameters as received: copies, on the device of the model.
        memory: what this objective's `Objective.next_memory` returned after this client's last accepted update; {}
            the first time.
        extra: what else the server sent, by the name of its record: such as ``control`` of `Scaffold`.
    """

    parameters: Mapping[str, Tensor]
    memory: Mapping[str, Tensor]
    extra: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


class Objective:
    """The local objective. Most terms can be left out, so each objective states only what it adds.

    Attributes:
        needs_start: whether the model as it was received is needed: by all but the loss alone.
        has_memory: whether the client keeps `next_memory` from one of its trainings to the next.
    """

    needs_start: ClassVar[bool] = True
    has_memory: ClassVar[bool] = False

    def penalty(self, received: Received) -> Penalty | None:
        """The term that training adds to the loss of every batch, as a function of the model; None for none."""
        return None

    def next_memory(
        self, received: Received, trained: Mapping[str, Tensor], *, steps: int, learning_rate: float
    ) -> dict[str, Tensor]:
        """What the client remembers once the server has accepted its update.

        Args:
            received: as given to `penalty`.
            trained: w_k, at least the names in ``received.parameters``.
            steps: optimizer steps that led from w^t to w_k.
            learning_rate: of each of them.

        Returns:
            One tensor for each name in ``received.parameters``; {} for an objective without memory.
        """
        return {}


@dataclass(frozen=True)
class Plain(Objective):
    """The loss alone (McMahan et al., "Communication-Efficient Learning of Deep Networks ...", AISTATS 2017)."""

    needs_start: ClassVar[bool] = False


@dataclass(frozen=True)
class Prox(Objective):
    """L_k(w) + (μ/2) |w - w^t|² (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020).

    Args:
        mu: μ, how strongly the client is held to the model that it received; 0 is the plain objective.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.mu < math.inf:
            raise UserError(f"objective.mu: found {self.mu!r}, expected a number of at least 0")

    def penalty(self, received: Received) -> Penalty | None:
        """(μ/2) |w - w^t|²."""
        if self.mu == 0:
            return None
        return lambda model: self.mu / 2 * _squared_distance(model, received.parameters)


@dataclass(frozen=True)
class Dyn(Objective):
    """L_k(w) - ⟨h_k, w⟩ + (alpha/2) |w - w^t|² (Acar et al., "Federated Learning Based on Dynamic Regularization",
    ICLR 2021).

    The memory h_k starts at 0 and becomes h_k - alpha Δ_k. At a minimum of the objective that is the gradient of L_k,
    so that clients whose gradients sum to 0 all stay where they are, however different their data. It only makes sense
    with the server's side of the method, with the same alpha.

    Args:
        alpha: how strongly the client is held to the model that it received.
    """

    alpha: float = 0.01
    has_memory: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise UserError(f"objective.alpha: found {self.alpha!r}, expected a number above 0")

    def penalty(self, received: Received) -> Penalty | None:
        """(alpha/2) |w - w^t|² - ⟨h_k, w⟩; without the second term the first time."""
        h = _complete(received.memory, received.parameters) if received.memory else None

        def penalty(model: nn.Module) -> Tensor:
            proximal = self.alpha / 2 * _squared_distance(model, received.parameters)
            return proximal if h is None else proximal - _inner_product(model, h)

        return penalty

    @torch.no_grad()
    def next_memory(
        self, received: Received, trained: Mapping[str, Tensor], *, steps: int, learning_rate: float
    ) -> dict[str, Tensor]:
        """h_k - alpha Δ_k."""
        h = _complete(received.memory, received.parameters)
        return {name: h[name] - self.alpha * (trained[name] - start) for name, start in received.parameters.items()}


@dataclass(frozen=True)
class Scaffold(Objective):
    """L_k(w) + ⟨c - c_k, w⟩ (Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging ...", ICML 2020).

    The term's gradient turns each step's g into g - c_k + c: what this client's data pulls aside is taken out, what
    all clients' data agree on is put in. c is what the server sends as ``control``. c_k, the memory, starts at 0 and
    becomes c_k - c - Δ_k / (steps · lr): the mean of the client's own gradients along the way (the paper's option II).
    That holds for plain SGD alone, without momentum and weight decay.
    """

    has_memory: ClassVar[bool] = True

    def penalty(self, received: Received) -> Penalty | None:
        """⟨c - c_k, w⟩; None as long as both are 0."""
        control = received.extra.get("control", {})
        if not control and not received.memory:
            return None
        c, c_k = _complete(control, received.parameters), _complete(received.memory, received.parameters)
        correction = {name: c[name] - c_k[name] for name in received.parameters}
        return lambda model: _inner_product(model, correction)

    @torch.no_grad()
    def next_memory(
        self, received: Received, trained: Mapping[str, Tensor], *, steps: int, learning_rate: float
    ) -> dict[str, Tensor]:
        """c_k - c - Δ_k / (steps · lr)."""
        if not steps * learning_rate > 0:
            raise UserError(
                f"objective=scaffold: found {steps} steps with learning rate {learning_rate}, expected both above 0: "
                "the control variate is the update divided by them"
            )
        c = _complete(received.extra.get("control", {}), received.parameters)
        c_k = _complete(received.memory, received.parameters)
        return {
            name: c_k[name] - c[name] - (trained[name] - start) / (steps * learning_rate)
            for name, start in received.parameters.items()
        }


def _complete(found: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``found`` for every name of ``like``, on its device and in its dtype; zeros where nothing was found at all."""
    if not found:
        return {name: torch.zeros_like(value) for name, value in like.items()}
    missing = [name for name in like if name not in found]
    if missing:
        raise ValueError(f"found nothing for {missing[0]!r}, expected a tensor for each of {len(like)} parameters")
    return {name: found[name].to(value) for name, value in like.items()}


def _squared_distance(model: nn.Module, start: Mapping[str, Tensor]) -> Tensor:
    """|w - w^t|² over the names in ``start``, a scalar."""
    parameters = dict(model.named_parameters())
    # One pass forward and one back, with nothing of the model's size in between.
    return torch.stack([mse_loss(parameters[name], value, reduction="sum") for name, value in start.items()]).sum()


def _inner_product(model: nn.Module, direction: Mapping[str, Tensor]) -> Tensor:
    """⟨direction, w⟩ over the names in ``direction``, a scalar."""
    parameters = dict(model.named_parameters())
    terms = [torch.dot(value.flatten(), parameters[name].flatten()) for name, value in direction.items()]
    return torch.stack(terms).sum()
