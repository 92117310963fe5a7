"""Conflict-averse weighting: any rule of TorchJD that turns a Gramian into weights."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from strategies.fedavg import FedAvg, State
from strategies.gramian import rescale
from strategies.options import one_of
from strategies.randomness import derive_seed
from strategies.updates import ClientUpdates
from strategies.weights import Weights

# Every weighting, with a value for each option that TorchJD has no default for.
WEIGHTINGS: dict[str, dict[str, float]] = {
    "AlignedMTL": {},
    "CAGrad": {"c": 0.5},
    "DualProj": {},
    "FairGrad": {"alpha": 1.0},
    "GradVac": {},
    "IMTLG": {},
    "MGDA": {},
    "NashMTL": {},
    "PCGrad": {},
    "UPGrad": {},
}
PREFERRING = ("AlignedMTL", "DualProj", "UPGrad")  # take a preference vector

# Not a user's to set: the preference is p, K is the round's; no config can write a projector, and weights of another
# round are weights of other clients.
_SET_HERE = {"pref_vector", "projector", "n_tasks", "update_weights_every"}


class ConflictAverse(FedAvg):
    """Weights by a rule of multi-objective optimisation, as TorchJD computes them from a Gramian (Quinton & Rey,
    "Jacobian Descent for Multi-Objective Optimization", 2024); each client's update is one objective's step.

    The shares of the examples p are the preference: a vector for the rules that take one (AlignedMTL,
    DualProj, UPGrad). The others are shown the updates ``K p_k Δ_k``: ``G' = D G D`` with D = diag(K p), and
    c = D c'. They see G' / tr G', because some take a Gramian of small trace for zero, and c' is scaled back.
    Running statistics are averaged by examples.

    Parameters
    ----------
    weighting : AlignedMTL (Senushkin et al. 2023), CAGrad (Liu et al. 2021), DualProj (Lopez-Paz & Ranzato
        2017), FairGrad (Ban & Ji 2024), GradVac (Wang et al. 2021), IMTLG (Liu et al. 2021), MGDA (Désidéri
        2012), NashMTL (Navon et al. 2022), PCGrad (Yu et al. 2020) or UPGrad (Quinton & Rey 2024). GradVac
        remembers each pair of clients: every round must have the same clients. NashMTL needs a solver that is
        installed for Python up to 3.12 only, and takes some 0.1 s for each Gramian.
    granularity : ``model``, or ``layer`` for each parameter tensor on its own Gramian.
    scale : ``norm`` brings the combined update to the length |Σ p_k Δ_k| (at layer granularity each tensor to its own),
        since the rules differ in scale: about a mean for UPGrad, a sum for PCGrad. ``none`` leaves the rule's own.
    options : keyword arguments of TorchJD's class, such as ``{"c": 0.4}`` for CAGrad.
    """

    needs_gramian = True

    def __init__(
        self,
        *args: Any,
        weighting: str = "UPGrad",
        granularity: str = "model",
        scale: str = "norm",
        options: Mapping[str, Any] | None = None,
        **flower_options: Any,
    ) -> None:
        super().__init__(*args, **flower_options)
        self.weighting = one_of("weighting", weighting, WEIGHTINGS)
        self.granularity = one_of("granularity", granularity, ("model", "layer"))
        self.scale = one_of("scale", scale, ("norm", "none"))
        self.options = {**WEIGHTINGS[weighting], **(options or {})}
        self._clients: tuple[str, ...] | None = None  # whom the rows of GradVac's memory belong to
        self._vaccines: dict[str, Any] = {}  # GradVac's weighting of each part of the model
        self._check_options()

    def weigh(self, server_round: int, updates: ClientUpdates) -> Weights:
        """Hand the Gramian to the rule, and bring what it returns to scale."""
        p = updates.shares
        if self.weighting == "GradVac":
            self._remember(server_round, updates.names)
        seed = derive_seed(self.seed, "visiting order", server_round)  # one for all tensors
        if self.granularity == "layer":
            gramian = updates.gramians
            parts = zip(updates.parameters, gramian, strict=True)
            c = torch.stack([self._weights(part, of_part, p, seed) for part, of_part in parts])
        else:
            gramian = updates.gramian
            c = self._weights("model", gramian, p, seed)
        if self.scale == "none":
            return Weights(convex=p, combination=c)
        return Weights(convex=p, combination=rescale(gramian, c, p), projected=c)

    def state_dict(self) -> State:
        """Return GradVac's target cosines by part of the model, and the clients of their rows; else nothing."""
        if self._clients is None:
            return {}
        targets = {part: vaccine._phi_t.clone() for part, vaccine in self._vaccines.items()}
        return {"clients": list(self._clients), "targets": targets}

    def load_state_dict(self, state: State) -> None:
        """Take up what :meth:`state_dict` returned."""
        self._clients = tuple(state["clients"]) if state else None
        self._vaccines = {}
        for part, targets in state.get("targets", {}).items():
            vaccine = self._vaccines[part] = self._rule(part, len(targets))
            # TorchJD saves a buffer that it cannot load: it is None until the first call.
            vaccine._phi_t, vaccine._state_key = targets.clone(), (len(targets), targets.dtype)

    def _weights(self, part: str, gramian: Tensor, p: Tensor, seed: int) -> Tensor:
        """Return c, (K,), for one Gramian (K, K); p where it is zero, or there is nobody to conflict with."""
        size = len(p)
        if size == 1:
            return p
        rule = self._rule(part, size)
        if self.weighting in PREFERRING:
            rule.pref_vector = p
            d = torch.ones_like(p)
        else:
            d = size * p
        preferred = d.unsqueeze(1) * gramian * d
        if not preferred.isfinite().all():
            raise ValueError("gramian holds values that are not finite: an update overflowed or is not a number")
        trace = preferred.trace()
        if trace <= 0:
            return p
        shown = preferred / trace
        # The rules draw from torch's global generator. Only that of the CPU is touched, and put back.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.default_generator.manual_seed(seed)
            warnings.simplefilter("ignore")  # of the solvers, about problems that a user cannot change
            try:
                c = rule(_root(shown) if self.weighting == "NashMTL" else shown)
            # Whatever the rule's solver raises.
            except Exception as error:
                raise ValueError(f"{self.weighting} found no weights for {size} updates: {error}") from error
        return d * c * trace ** self._degree()

    def _rule(self, part: str, size: int) -> Any:
        """Return TorchJD's weighting; one for each part of the model where it remembers, else a new one."""
        from torchjd import aggregation  # 0.2 s, and a library, that no other strategy needs

        if self.weighting == "NashMTL":
            return aggregation.NashMTL(n_tasks=size, **self.options).weighting
        if part in self._vaccines:
            return self._vaccines[part]
        rule = getattr(aggregation, f"{self.weighting}Weighting")(**self.options)
        if self.weighting == "GradVac":
            self._vaccines[part] = rule
        return rule

    def _degree(self) -> float:
        """Return how weights scale with the Gramian, c(s G) = s^degree c(G)."""
        if self.weighting == "FairGrad":  # G c = c^(-1/alpha)
            return -self.options["alpha"] / (1 + self.options["alpha"])
        return -0.5 if self.weighting == "NashMTL" else 0.0  # G c = 1/c

    def _remember(self, server_round: int, names: tuple[str, ...]) -> None:
        if self._clients is None:
            self._clients = names
        if names != self._clients:
            raise ValueError(
                f"GradVac remembers every pair of clients, so all must be in every round: round {server_round} has "
                f"{', '.join(names)}, the first had {', '.join(self._clients)}"
            )

    def _check_options(self) -> None:
        from torchjd import aggregation

        nash = self.weighting == "NashMTL"
        made = aggregation.NashMTL if nash else getattr(aggregation, f"{self.weighting}Weighting")
        allowed = inspect.signature(made).parameters.keys() - _SET_HERE
        if unknown := sorted(self.options.keys() - allowed):
            known = ", ".join(sorted(allowed)) or "none"
            raise ValueError(f"options {', '.join(unknown)} are not {self.weighting}'s, which has {known}")
        self._rule("", 1)
        self._vaccines.clear()


def _root(gramian: Tensor) -> Tensor:
    """Return a square root L of a positive semi-definite matrix, L Lᵀ = G."""
    values, vectors = torch.linalg.eigh(gramian)
    return vectors * values.clamp(min=0.0).sqrt()
