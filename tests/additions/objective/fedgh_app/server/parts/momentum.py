"""``objective=momentum``: clients are pulled on along the federation's last step (after FedCM, Xu et al. 2021)."""

from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord

from fedgh_app.server.federation import tensors
from fedgh_app.server.parts.part import Part
from fedgh_app.vision.objectives import Objective
from strategies.updates import parameters_of


@dataclass(frozen=True)
class Momentum(Objective):
    """The client's half: L_k(w) - weight · ⟨m, w⟩; m is what the server sent."""

    weight: float

    def penalty(self, received):
        momentum = received.extra.get("momentum")
        if not momentum:
            return None

        def pull(model):
            w = dict(model.named_parameters())
            return -self.weight * sum((m.to(w[name]) * w[name]).sum() for name, m in momentum.items())

        return pull


class MomentumPart(Part):
    """The server's half: m, the step that the last aggregation made; zero at first."""

    def join(self, federation):
        start = tensors(federation.initial)
        self.m = {name: torch.zeros_like(start[name]) for name in parameters_of(federation.initial)}

    def message_records(self):
        return {"momentum": ArrayRecord({name: Array(m.numpy()) for name, m in self.m.items()})}

    def after_aggregation(self, current, base, proposed, updates, cohort):
        before, after = tensors(base), tensors(proposed)
        self.m = {name: after[name] - before[name] for name in self.m}
        return proposed

    def state_dict(self):
        return dict(self.m)

    def load_state_dict(self, state):
        self.m = dict(state)
