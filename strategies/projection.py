"""Gradient harmonisation in Gram space: PCGrad's projection, and the pairwise one.

Everything here is a function of the Gramian ``G[i, j] = <Δ_i, Δ_j>`` of K updates: a vector of model size is
a row of coefficients, and no vector of model size is touched. A leading batch of Gramians ``(B, K, K)``, one
for each tensor of a model, takes the same number of steps as one.
"""

import torch
from torch import Tensor

from strategies.gramian import ROUNDING, squared_norms

SCHEMES = ("pcgrad", "pairwise")


def harmonize(
    gramian: Tensor,
    weights: Tensor,
    *,
    threshold: float = 0.0,
    scheme: str = "pcgrad",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the coefficients c of the weighted sum of harmonised updates, ``Σ_i ψ_i Δ_i' = Σ_m c_m Δ_m``.

    ``pcgrad`` is the projection of Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, Algorithm 1,
    as FedGH (Ni et al., Sensors 25(14):4372, 2025) applies it to client updates; a threshold other than 0
    makes it the update of Wang et al., "Gradient Vaccine", 2021, equation 4, to a fixed cosine. ``pairwise``
    is the rule of Zhang et al., "Tackling the Non-IID Issue in Heterogeneous Federated Learning by Gradient
    Harmonization", 2023.

    Parameters
    ----------
    gramian : (K, K) or (B, K, K) inner products of the updates, symmetric. Computed in float64.
    weights : (K,) or (B, K) ψ, one weight for each update.
    threshold : updates conflict when their cosine is below it; in (-1, 1), and 0 for ``pairwise``.
    scheme : ``pcgrad`` or ``pairwise``.
    generator : draws the visiting order, one permutation for each client (or one of the pairs); None: 0 …
        K-1. A batch shares one order.

    Returns
    -------
    (K,) or (B, K) float64.
    """
    gramian = _checked_gramian(gramian)
    weights = _checked_weights(weights, gramian)
    if not -1.0 < threshold < 1.0:
        raise ValueError(f"threshold is a cosine strictly between -1 and 1, got {threshold}")
    if scheme == "pcgrad":
        coefficients = _pcgrad(gramian, threshold, generator)
    elif scheme == "pairwise":
        if threshold != 0.0:
            raise ValueError(f"scheme 'pairwise' knows no threshold other than 0, got {threshold}")
        coefficients = _pairwise(gramian, generator)
    else:
        raise ValueError(f"scheme is one of {', '.join(SCHEMES)}, got {scheme!r}")
    return (weights.unsqueeze(-2) @ coefficients).squeeze(-2)


def _pcgrad(gramian: Tensor, threshold: float, generator: torch.Generator | None) -> Tensor:
    """Return C (..., K, K): row i holds Δ_i'. Rows depend on G alone, so all advance together."""
    size = gramian.shape[-1]
    rows = torch.arange(size)
    coefficients = torch.eye(size, dtype=gramian.dtype).expand(gramian.shape).clone()
    own = gramian.diagonal(dim1=-2, dim2=-1)
    for others in _visiting_order(size, generator).T:
        original = gramian[..., others, :]  # row i: <Δ_j, ·> for the j that i visits now
        inner = (coefficients * original).sum(-1)  # <Δ_i', Δ_j>
        squared = own[..., others]  # |Δ_j|²
        if threshold == 0.0:
            conflict = (inner < 0) & (squared > 0)
            step = -inner / squared
        else:
            length = squared_norms(coefficients, gramian).sqrt()
            cosine = (inner / (length * squared.sqrt())).clamp(-1.0, 1.0)
            conflict = (length > 0) & (squared > 0) & (cosine < threshold)
            sine = (1 - threshold**2) ** 0.5
            step = length * (threshold * (1 - cosine**2).sqrt() - cosine * sine) / (squared.sqrt() * sine)
            # Exactly opposed, what is left has no direction to turn: the zero vector.
            opposed = conflict & (cosine <= -1.0 + ROUNDING)
            coefficients = coefficients.masked_fill(opposed.unsqueeze(-1), 0.0)
            conflict = conflict & ~opposed
        coefficients[..., rows, others] += step.where(conflict, 0.0)
    return coefficients


def _visiting_order(size: int, generator: torch.Generator | None) -> Tensor:
    """Return (K, K-1): row i lists the others in the order in which i visits them."""
    order = torch.empty(size, size - 1, dtype=torch.int64)
    for i in range(size):
        drawn = torch.arange(size) if generator is None else torch.randperm(size, generator=generator)
        order[i] = drawn[drawn != i]
    return order


def _pairwise(gramian: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return C (..., K, K) after every pair; both members change from their values before the step."""
    size = gramian.shape[-1]
    coefficients = torch.eye(size, dtype=gramian.dtype).expand(gramian.shape).clone()
    pairs = torch.combinations(torch.arange(size))
    if generator is not None:
        pairs = pairs[torch.randperm(len(pairs), generator=generator)]
    for pair in pairs:
        members = coefficients[..., pair, :]  # the old C_i, C_j
        products = members @ gramian @ members.mT
        squared = squared_norms(members, gramian)
        inner = products[..., 0, 1]
        conflict = (inner < 0) & (squared > 0).all(-1)
        step = (-inner.unsqueeze(-1) / squared.flip(-1)).where(conflict.unsqueeze(-1), 0.0)
        coefficients[..., pair, :] = members + step.unsqueeze(-1) * members.flip(-2)
    return coefficients


def _checked_gramian(gramian: Tensor) -> Tensor:
    shape = tuple(gramian.shape)
    if len(shape) not in (2, 3) or shape[-1] != shape[-2] or shape[-1] == 0:
        raise ValueError(f"gramian has shape (K, K) or (B, K, K) with K > 0, got {shape}")
    gramian = gramian.detach().to("cpu", torch.float64)
    if not gramian.isfinite().all():
        raise ValueError("gramian holds values that are not finite: an update overflowed or is not a number")
    if (gramian.diagonal(dim1=-2, dim2=-1) < 0).any():
        raise ValueError("gramian has a negative diagonal: squared norms cannot be negative")
    return gramian


def _checked_weights(weights: Tensor, gramian: Tensor) -> Tensor:
    size = gramian.shape[-1]
    shape = tuple(weights.shape)
    if shape != (size,) and shape != tuple(gramian.shape[:-1]):
        raise ValueError(f"weights have shape ({size},) for {size} updates, got {shape}")
    weights = weights.detach().to("cpu", torch.float64)
    if not weights.isfinite().all():
        raise ValueError("weights hold values that are not finite")
    return weights
