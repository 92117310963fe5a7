"""How sure a network is of a keypoint: from 0 to 1, whatever its maps hold."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh_app.pose.models.heatmaps import REFERENCE_WIDTH, peaks

# Maps (B, J, h, w), as the network puts them out, to confidences (B, J).
Confidence = Callable[[Tensor], Tensor]


def peak_height(maps: Tensor) -> Tensor:
    """The highest value of each map, for maps trained to Gaussians of height 1."""
    return maps.flatten(-2).amax(-1).clamp(0, 1)


@dataclass(frozen=True)
class MassAtPeak:
    """Share of softmax(beta z) within two target widths of its peak, for maps z that are logits over the pixels.

    The highest probability itself says little: it is small where the map has many pixels, however sure the network
    is. A map that is its target, a Gaussian of standard deviation ``sigma`` at a width of 64, has 0.9 or more.

    Attributes:
        sigma: of the targets, in pixels of a map 64 wide.
        beta: sharpness of the softmax.
    """

    sigma: float = 2.0
    beta: float = 1.0

    def __call__(self, maps: Tensor) -> Tensor:
        """Confidences (B, J) of logits (B, J, h, w)."""
        height, width = maps.shape[-2:]
        mass = (self.beta * maps).flatten(-2).softmax(-1).unflatten(-1, (height, width))
        x, y = peaks(maps)[0].unbind(-1)
        reach = max(1.0, 2 * self.sigma * width / REFERENCE_WIDTH)
        columns = (torch.arange(width, device=maps.device) - x[..., None]).abs() <= reach
        rows = (torch.arange(height, device=maps.device) - y[..., None]).abs() <= reach
        return (mass * columns[..., None, :] * rows[..., :, None]).sum((-2, -1))
