"""``objective=momentum``: clients are pulled on along the federation's last step (after FedCM, Xu et al. 2021)."""

from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord

from fedgh_app.server.federation import tensors
from fedgh_app.server.parts.part import Part
from fedgh_app.vision.objectives import CONTROL, Objective
from strategies.updates import parameters_of


@dataclass(frozen=True)
class Momentum(Objective):
    """The client's half: L_k(w) - weight · ⟨m, w⟩; m is what the server sent."""

    weight: float

    def penalty(self, received):
        if not received.control:
            return None

        def pull(model):
            w = dict(model.named_parameters())
            return -self.weight * sum((m.to(w[name]) * w[name]).sum() for name, m in received.control.items())

        return pull


class MomentumPart(Part):
    """The server's half: m, the step that the last aggregation made; zero at first."""

    def join(self, federation):
        start = tensors(federation.initial)
        self.m = {name: torch.zeros_like(start[name]) for name in parameters_of(federation.initial)}

    def message_records(self):
        return {CONTROL: ArrayRecord({name: Array(m.numpy()) for name, m in self.m.items()})}

    def after_aggregation(self, current, base, proposed, updates, cohort):
        before, after = tensors(base), tensors(proposed)
        self.m = {name: after[name] - before[name] for name in self.m}
        return proposed

    def state_dict(self):
        return dict(self.m)

    def load_state_dict(self, state):
        self.m = dict(state)
