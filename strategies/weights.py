"""What a rule decides: the weights on the client updates of a round."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights on K updates, float64.

    convex : ψ, (K,), not negative, summing to 1. Averages the running statistics.
    combination : c in ``w + η Σ c_k Δ_k``, (K,) or one row for each of the T parameter tensors, (T, K).
    projected : c before it was rescaled; None where the rule does not rescale.
    shift : what the parameters move by beside the updates, ``w + η (Σ c_k Δ_k + shift)``, one tensor for each;
        None where a rule has no state of the model's size.
    """

    convex: Tensor
    combination: Tensor
    projected: Tensor | None = None
    shift: Mapping[str, Tensor] | None = None
