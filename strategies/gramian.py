"""How updates lie to each other, from their Gramian ``G[i, j] = <Δ_i, Δ_j>`` alone: lengths, cosines, conflicts.

A leading batch of Gramians ``(B, K, K)``, one for each tensor of a model, takes the same number of steps as one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Below this share of what its terms could add up to, a squared norm is cancellation, not a length; as near
# to -1, a cosine is -1.
ROUNDING = 64 * torch.finfo(torch.float64).eps


def squared_norms(coefficients: Tensor, gramian: Tensor) -> Tensor:
    """Return |Σ_m C[i,m] Δ_m|², (..., R), of the rows of C (..., R, K); exactly 0 where they cancelled."""
    squared = ((coefficients @ gramian) * coefficients).sum(-1)
    magnitude = ((coefficients.abs() @ gramian.abs()) * coefficients.abs()).sum(-1)
    return squared.where(squared > ROUNDING * magnitude, 0.0)


def norm(gramian: Tensor, combination: Tensor) -> Tensor:
    """Return |Σ_k c_k Δ_k|, one for each Gramian of the batch. (..., K, K), (..., K) -> (...)."""
    return squared_norms(combination.unsqueeze(-2), gramian).squeeze(-1).sqrt()


def rescale(gramian: Tensor, combination: Tensor, weights: Tensor) -> Tensor:
    """Scale a combination to the length of ``Σ ψ_i Δ_i``; a zero update stays as it is.

    With a batch of Gramians each tensor is brought to its own length, since each was projected on its own.
    """
    before = norm(gramian, weights.expand_as(combination))
    after = norm(gramian, combination)
    return combination * (before / after).where(after > 0, 1.0).unsqueeze(-1)


def cosines(gramian: Tensor) -> Tensor:
    """Return the cosines between updates, (..., K, K) in [-1, 1]; those of a zero update are 0."""
    lengths = _lengths(gramian)
    unit = gramian / lengths.unsqueeze(-1) / lengths.unsqueeze(-2)  # one by one: the product could underflow
    return unit.where(_moving_pairs(lengths), 0.0).clamp(-1.0, 1.0)


def conflicts(gramian: Tensor, threshold: float = 0.0) -> Tensor:
    """Return which pairs conflict, (..., K, K) bool, symmetric. A zero update conflicts with nobody."""
    itself = torch.eye(gramian.shape[-1], dtype=torch.bool)
    return (cosines(gramian) < threshold) & _moving_pairs(_lengths(gramian)) & ~itself


def conflicting_fraction(gramian: Tensor, threshold: float = 0.0) -> Tensor:
    """Return the share of the K (K-1) / 2 pairs that conflict, (...); 0 for a single client."""
    size = gramian.shape[-1]
    return conflicts(gramian, threshold).sum((-2, -1)) / max(size * (size - 1), 1)


class CosineSummary(NamedTuple):
    """Mean and smallest cosine over the pairs of non-zero updates; None where there is no such pair."""

    mean: float | None
    smallest: float | None


def summarise_cosines(gramian: Tensor) -> CosineSummary:
    """Summarise the cosines of one Gramian (K, K)."""
    values = cosines(gramian)[torch.triu(_moving_pairs(_lengths(gramian)), diagonal=1)]
    return CosineSummary(values.mean().item(), values.min().item()) if len(values) else CosineSummary(None, None)


def _lengths(gramian: Tensor) -> Tensor:
    return gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt()


def _moving_pairs(lengths: Tensor) -> Tensor:
    return (lengths.unsqueeze(-1) > 0) & (lengths.unsqueeze(-2) > 0)
