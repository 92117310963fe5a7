"""Conflict-averse weighting: any rule of TorchJD that turns a Gramian into weights."""

import inspect
import warnings
from collections.abc import Mapping
from logging import WARNING
from typing import Any

import numpy as np
import torch
from flwr.common.logger import log
from scipy.optimize import nnls
from torch import Tensor

from strategies.fedavg import FedAvg, State
from strategies.gramian import cosines
from strategies.options import one_of
from strategies.randomness import derive_seed
from strategies.updates import ClientUpdates
from strategies.weights import Weights

# Every weighting, with a value for each option that TorchJD has no default for.
WEIGHTINGS: dict[str, dict[str, float]] = {
    "AlignedMTL": {},
    # TorchJD's own 1e-4 takes a client of few examples, whose update is scaled down, for a standstill of all.
    "CAGrad": {"c": 0.5, "norm_eps": 1e-9},
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
BLIND = ("FairGrad", "IMTLG", "NashMTL")  # know no preference, and do not see how updates are scaled

# An update stands still when its squared norm is at most this share of the largest one.
STILL = 1e-10

# Below this share of the largest, an eigenvalue of the cosines is the rounding of float32 products.
_SINGULAR = 1e-5

# Not a user's to set: the preference is p, K is the round's; no config can write a projector, and weights of another
# round are weights of other clients.
_SET_HERE = {"pref_vector", "projector", "n_tasks", "update_weights_every"}


class ConflictAverse(FedAvg):
    """Weights by a rule of multi-objective optimisation, as TorchJD computes them from a Gramian (Quinton & Rey,
    "Jacobian Descent for Multi-Objective Optimization", 2024); each client's update is one objective's step.

    The shares of the examples p are the preference: a vector for the rules that take one (AlignedMTL, DualProj,
    UPGrad). CAGrad, GradVac and PCGrad are shown the updates ``d_k Δ_k`` with d = K p: ``G' = D G D``, c = D c'.
    MGDA, whose shortest combination favours what is short, is shown d = 1/(K p). For FairGrad, IMTLG and NashMTL the
    number of a client's examples does not count: they solve for what each client gains, whatever its update's scale.
    All see G' / tr G', because some take a Gramian of small trace for zero, and c' is scaled back. Running statistics
    are averaged by examples.

    A client that stands still (its squared norm is at most 1e-10 of the largest) or has no examples gets c = 0, since
    MGDA and CAGrad would stop everybody for its sake; the round's diagnostics name it under ``standing_still``. IMTLG
    is replaced by p where it has no solution (more clients than dimensions) or one that every client loses by.

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
        told = {"standing_still": self._standing_still(updates)}
        if self.scale == "none":
            return Weights(convex=p, combination=c, told=told)
        return Weights(convex=p, combination=updates.rescaled(c, p), projected=c, told=told)

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
        moving = _moving(gramian, p)
        if moving.sum() < 2:
            return p.where(moving, 0.0) if moving.any() else p
        if self.weighting == "GradVac":  # its memory has a row for each client, also of those that stand still
            return self._of_moving(part, gramian, p, seed).where(moving, 0.0)
        c = torch.zeros_like(p)
        c[moving] = self._of_moving(part, gramian[moving][:, moving], p[moving], seed)
        return c

    def _of_moving(self, part: str, gramian: Tensor, p: Tensor, seed: int) -> Tensor:
        """Return c as `_weights`, of clients that all move."""
        size = len(p)
        rule = self._rule(part, size)
        if self.weighting in PREFERRING:
            rule.pref_vector = p
        d = self._scale_of(size * p)
        preferred = d.unsqueeze(1) * gramian * d
        trace = preferred.trace()
        shown = preferred / trace
        # The rules draw from torch's global generator. Only that of the CPU is touched, and put back.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.default_generator.manual_seed(seed)
            warnings.simplefilter("ignore")  # of the solvers, about problems that a user cannot change
            try:
                c = (
                    _shortest(shown)
                    if self.weighting == "MGDA"
                    else rule(_root(shown) if self.weighting == "NashMTL" else shown)
                )
            # Whatever the rule's solver raises.
            except Exception as error:
                raise ValueError(f"{self.weighting} found no weights for {size} updates: {error}") from error
        if self.weighting == "IMTLG" and _loses(shown, c):
            return p
        return d * c * trace ** self._degree()

    def _scale_of(self, preference: Tensor) -> Tensor:
        """Return d, (K,), by which each update is scaled before the rule sees it; preference is K p."""
        if self.weighting in (*PREFERRING, *BLIND):
            return torch.ones_like(preference)
        return 1 / preference if self.weighting == "MGDA" else preference

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

    def _standing_still(self, updates: ClientUpdates) -> list[str]:
        moving = _moving(updates.gramian, updates.shares).tolist()
        still = [label for label, moves in zip(updates.labels, moving, strict=True) if not moves]
        if still and any(moving):
            log(WARNING, "%s leaves out who changed nothing: %s", self.weighting, ", ".join(still))
        return still

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
        if self.weighting == "MGDA":  # solved exactly
            allowed -= {"epsilon", "max_iters"}
        if unknown := sorted(self.options.keys() - allowed):
            known = ", ".join(sorted(allowed)) or "none"
            raise ValueError(f"options {', '.join(unknown)} are not {self.weighting}'s, which has {known}")
        self._rule("", 1)
        self._vaccines.clear()


def _moving(gramian: Tensor, p: Tensor) -> Tensor:
    """Return which clients have examples and an update that is no standstill beside the largest, (K,) bool."""
    squared = gramian.diagonal()
    return (squared > STILL * squared.max()) & (p > 0)


def _loses(gramian: Tensor, c: Tensor) -> bool:
    """Return whether updates are linearly dependent, as far as float32 can tell, or a client loses by the step c."""
    rank = torch.linalg.matrix_rank(cosines(gramian), hermitian=True, rtol=_SINGULAR)
    return bool(rank < len(c) or (gramian @ c <= 0).any())


def _shortest(gramian: Tensor) -> Tensor:
    """Return the weights of the shortest convex combination, (K,): MGDA's, exactly, where TorchJD's steps of Frank and
    Wolfe are too coarse for clients of unequal size. A problem of non-negative least squares (Lawson & Hanson, "Solving
    Least Squares Problems", 1974, chapter 23): with R'R = G, min |R c|² + (Σ c - 1)² over c >= 0, brought to Σ c = 1.
    """
    rows = torch.cat([_root(gramian).T, torch.ones(1, len(gramian), dtype=gramian.dtype)])
    target = np.zeros(len(rows))
    target[-1] = 1.0
    weights = torch.from_numpy(nnls(rows.numpy(), target)[0])
    return weights / weights.sum()


def _root(gramian: Tensor) -> Tensor:
    """Return a square root L of a positive semi-definite matrix, L Lᵀ = G."""
    values, vectors = torch.linalg.eigh(gramian)
    return vectors * values.clamp(min=0.0).sqrt()
