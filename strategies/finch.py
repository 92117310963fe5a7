"""FINCH: clusters from nothing but first neighbours."""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

# Cosines nearer than this are equal: what is left is the rounding of float64 inner products.
_DECIMALS = 12


def finch(embeddings: Tensor) -> list[int]:
    """Return the first partition of FINCH (Sarfraz et al., "Efficient Parameter-free Clustering Using First Neighbor
    Relations", 2019).

    With κ_i the first neighbour of i in cosine distance, i and j are linked when j = κ_i, i = κ_j or
    κ_i = κ_j; clusters are the connected components. Every point has a neighbour, so no cluster is a single
    point unless it is the only one, and up to three points are always one cluster.

    Parameters
    ----------
    embeddings : (K, D), one row for each point. The nearest of equally near neighbours is the one with the lowest
        index. A zero vector has no direction: it is at distance 1 from everyone, as in the authors' code.

    Returns
    -------
    K cluster numbers, counted from 0 in the order of the clusters' first members.

    Raises ``ValueError`` for another or an empty shape, or values that are not finite.
    """
    if embeddings.ndim != 2 or embeddings.numel() == 0:
        raise ValueError(f"embeddings have shape (K, D) with K, D > 0, got {tuple(embeddings.shape)}")
    points = embeddings.detach().to("cpu", torch.float64)
    if not points.isfinite().all():
        raise ValueError("embeddings hold values that are not finite")
    size = len(points)
    if size == 1:
        return [0]
    # Dividing by the largest entry first keeps the squares of tiny and huge vectors in range.
    points = torch.nn.functional.normalize(points / points.abs().amax(1, keepdim=True).clamp(min=1e-300), dim=1)
    cosines = (points @ points.T).numpy().round(_DECIMALS)
    np.fill_diagonal(cosines, -np.inf)
    neighbours = cosines.argmax(axis=1)  # the first of several
    # Two points with the same first neighbour are linked through it, so these links are all that is needed.
    links = coo_array((np.ones(size), (np.arange(size), neighbours)), shape=(size, size))
    _, components = connected_components(links, directed=False)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(component, len(numbers)) for component in components.tolist()]
