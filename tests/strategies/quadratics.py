"""A federation whose minimum is known: every client's loss is a quadratic, L_k(w) = ½ (w - b_k)ᵀ A_k (w - b_k)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from federation import aggregate, record, reply
from torch import Tensor, nn

from fedgh_app.vision.objectives import MEAN_EXAMPLES, Objective, Received
from strategies.fedavg import FedAvg
from strategies.scaffold import ControlVariate


class Point(nn.Module):
    """A model that is its one parameter, w."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.clone())


@dataclass
class Quadratics:
    """Clients of unlike curvature, minima and numbers of examples, in float64.

    Attributes:
        examples: n_k.
        curvatures: A_k, (K, d, d), positive definite.
        minima: b_k, (K, d).
    """

    examples: Sequence[int] = (400, 200, 50, 10)
    dimension: int = 3
    seed: int = 0
    curvatures: Tensor = field(init=False)
    minima: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        count, size = len(self.examples), self.dimension
        roots = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
        self.curvatures = roots @ roots.mT / size + 0.3 * torch.eye(size, dtype=torch.float64)
        self.minima = 3 * torch.randn(count, size, generator=generator, dtype=torch.float64)

    def optimum(self, shares: Iterable[float]) -> Tensor:
        """The minimum of Σ p_k L_k, (d,)."""
        p = torch.tensor(list(shares), dtype=torch.float64)
        curvature = (p[:, None, None] * self.curvatures).sum(0)
        return torch.linalg.solve(
            curvature, (p[:, None, None] * self.curvatures @ self.minima.unsqueeze(-1)).sum(0)[:, 0]
        )

    @property
    def by_examples(self) -> Tensor:
        """The minimum of the mean loss of all examples."""
        return self.optimum(n / sum(self.examples) for n in self.examples)

    @property
    def by_clients(self) -> Tensor:
        """The minimum of the clients' plain mean."""
        return self.optimum([1 / len(self.examples)] * len(self.examples))

    def loss(self, client: int, w: Tensor) -> Tensor:
        """L_k(w)."""
        away = w - self.minima[client]
        return away @ self.curvatures[client] @ away / 2

    def gradient(self, client: int, model: Point, objective: Objective, received: Received) -> Tensor:
        """Of a client's whole objective at the model."""
        penalty = objective.penalty(received)
        value = self.loss(client, model.w) + (0 if penalty is None else penalty(model))
        return torch.autograd.grad(value, model.w, create_graph=True)[0]

    def minimise(self, client: int, objective: Objective, received: Received) -> Tensor:
        """The exact minimum of a client's objective: a step of Newton's method, as objectives are quadratic too."""
        model = Point(received.parameters["w"])
        gradient = self.gradient(client, model, objective, received)
        hessian = torch.stack([torch.autograd.grad(each, model.w, retain_graph=True)[0] for each in gradient])
        return (model.w - torch.linalg.solve(hessian, gradient)).detach()

    def descend(self, client: int, objective: Objective, received: Received, steps: int, rate: float) -> Tensor:
        """A client's objective after some steps of plain gradient descent."""
        model = Point(received.parameters["w"])
        for _ in range(steps):
            gradient = self.gradient(client, model, objective, received)
            with torch.no_grad():
                model.w -= rate * gradient
        return model.w.detach()


def federate(
    problem: Quadratics,
    strategy: FedAvg,
    objective: Objective,
    *,
    rounds: int,
    counts: str = "examples",
    steps: int | None = None,
    rate: float = 0.15,
    taking_part: int | None = None,
    longest: float = float("inf"),
) -> Tensor:
    """The model after some rounds, from zero.

    Args:
        counts: by what clients count beyond the strategy: ``examples`` or ``clients``.
        steps: of gradient descent; None: each client finds the exact minimum of its objective.
        rate: of each step.
        taking_part: how many clients a round has, in turn; None: all.
        longest: what each client clips its update to before it sends it.
    """
    size, w = len(problem.examples), {"w": np.zeros(problem.dimension)}
    shares = [n / sum(problem.examples) if counts == "examples" else 1 / size for n in problem.examples]
    mean = {MEAN_EXAMPLES: {MEAN_EXAMPLES: torch.tensor(np.mean(problem.examples))}} if counts == "examples" else {}
    control, memories = ControlVariate(record(w)), [dict[str, Tensor]()] * size
    for current in range(rounds):
        group = range(size) if taking_part is None else [(current * taking_part + k) % size for k in range(taking_part)]
        answers: dict[int, tuple[Mapping[str, np.ndarray], Mapping[str, float]]] = {}
        for k in group:
            sent = {"w": torch.from_numpy(w["w"])}
            c = {"control": {"w": torch.from_numpy(control.arrays["w"].numpy())}}
            received = Received(sent, memories[k], mean | c, problem.examples[k])
            done = (
                problem.minimise(k, objective, received)
                if steps is None
                else problem.descend(k, objective, received, steps, rate)
            )
            update = done - sent["w"]
            done = sent["w"] + update * min(1.0, longest / (torch.linalg.vector_norm(update).item() or 1.0))
            memories[k] = objective.next_memory(received, {"w": done}, steps=steps or 1, learning_rate=rate)
            answers[k] = ({"w": done.numpy()}, {"num-examples": problem.examples[k], "steps": steps or 1})
        replies = [reply(k, *answer) for k, answer in answers.items()]
        start, w = w, aggregate(strategy, w, answers, server_round=current)
        control.absorb(record(start), replies, [rate] * len(replies), [shares[k] for k in group])
    return torch.from_numpy(w["w"])
