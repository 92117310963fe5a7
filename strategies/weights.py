"""What a rule decides: the weights on the client updates of a round."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights on K updates, float64: the next model is ``w + η (Σ c_k Δ_k + shift)``."""

    convex: Tensor  # ψ, (K,), not negative, summing to 1; averages the running statistics
    combination: Tensor  # c, (K,) or one row for each of the T parameter tensors, (T, K)
    projected: Tensor | None = None  # c before it was rescaled; None where the rule does not rescale
    shift: Mapping[str, Tensor] | None = None  # one tensor for each parameter; None for no state of the model's size
