"""Federated gradient harmonization: FedAW whose weights went through the projection."""

from typing import Any

from strategies.fedaw import FedAW
from strategies.gramian import rescale
from strategies.options import one_of
from strategies.projection import SCHEMES, harmonize
from strategies.randomness import generator
from strategies.updates import ClientUpdates
from strategies.weights import Weights


class FedGH(FedAW):
    """Federated gradient harmonization (Ni et al., "FedGH", Sensors 25(14):4372, 2025).

    1. Discrepancy: clients i and j conflict when cos(Δ_i, Δ_j) < τ.
    2. Projection: PCGrad takes from each update what conflicts with the others, giving Δ_i'.
    3. Adaptive weights ψ (FedAW), from the updates as they were sent.
    4. Parameter reconstruction: w⁺ = w + η Σ ψ_i Δ_i' = w + η Σ c_m Δ_m.

    Parameters
    ----------
    granularity : ``model`` projects whole updates; ``layer`` projects each parameter tensor on its own
        Gramian, with ψ still from the whole model and one visiting order per round and client for all
        tensors.
    scheme : ``pcgrad`` (the paper's) or ``pairwise`` (Zhang et al., 2023); see
        :func:`strategies.projection.harmonize`.
    threshold : τ, a cosine in (-1, 1); 0 for ``pairwise``.
    rescale : ``norm`` brings the combined update back to the length |Σ ψ_i Δ_i|, since projection shortens
        it; at layer granularity each tensor to its own, our reading. ``none`` leaves it.
    weighting : ``adaptive`` (FedAW) or ``examples`` (ψ = p).
    """

    def __init__(
        self,
        *args: Any,
        granularity: str = "model",
        scheme: str = "pcgrad",
        threshold: float = 0.0,
        rescale: str = "none",
        weighting: str = "adaptive",
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.granularity = one_of("granularity", granularity, ("model", "layer"))
        self.scheme = one_of("scheme", scheme, SCHEMES)
        self.rescale = one_of("rescale", rescale, ("none", "norm"))
        self.weighting = one_of("weighting", weighting, ("adaptive", "examples"))
        if not -1.0 < threshold < 1.0 or (scheme == "pairwise" and threshold != 0.0):
            raise ValueError(f"threshold is a cosine in (-1, 1), and 0 for scheme 'pairwise'; got {threshold}")
        self.conflict_threshold = self.threshold = threshold

    def weigh(self, server_round: int, updates: ClientUpdates) -> Weights:
        """Project the updates in Gram space and weight what is left."""
        gramian = updates.gramians if self.granularity == "layer" else updates.gramian
        psi = self.adaptive_weights(updates) if self.weighting == "adaptive" else updates.shares
        visiting = generator(self.seed, "visiting order", server_round)
        c = harmonize(gramian, psi, threshold=self.threshold, scheme=self.scheme, generator=visiting)
        if self.rescale == "none":
            return Weights(convex=psi, combination=c)
        return Weights(convex=psi, combination=rescale(gramian, c, psi), projected=c)
