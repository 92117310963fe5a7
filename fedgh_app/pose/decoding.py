"""From the maps that a network puts out to keypoints: how each head's maps are read.

Coordinates are those of `heatmaps`: pixel centres at integers, points (x, y), sizes (height, width).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgh_app.pose.errors import UserError
from fedgh_app.pose.heatmaps import Size, peaks, to_input

# Maps (B, J, h, w) and the input's size to points (B, J, 2) in input pixels and scores (B, J).
Decode = Callable[[Tensor, Size], tuple[Tensor, Tensor]]

# From here on the map is (nearly) all background and its point is not told apart from it.
MOST_BACKGROUND = 0.95


def argmax(maps: Tensor, input_size: Size) -> tuple[Tensor, Tensor]:
    """The highest pixel of each map, and its value as the score."""
    peak, scores = peaks(maps)
    return to_input(peak.to(maps.dtype), input_size, _size(maps)), scores


def quarter(maps: Tensor, input_size: Size) -> tuple[Tensor, Tensor]:
    """The highest pixel, moved a quarter of a heatmap pixel toward the higher of its two neighbours along x,
    and likewise along y (Xiao et al., ECCV 2018, section 3); the highest pixel's value as the score.

    Not moved along an axis where the neighbours are equal or where the peak lies on the map's border: there a
    neighbour is missing.
    """
    height, width = _size(maps)
    peak, scores = peaks(maps)
    flat = maps.flatten(-2)
    x, y = peak.unbind(-1)

    def value(column: Tensor, row: Tensor) -> Tensor:
        # Clamping at the border keeps the index legal; what is read there is not used.
        index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        return flat.gather(-1, index[..., None])[..., 0]

    slope = torch.stack((value(x + 1, y) - value(x - 1, y), value(x, y + 1) - value(x, y - 1)), -1)
    last = torch.tensor([width - 1, height - 1], device=peak.device)
    inside = (peak > 0) & (peak < last)
    shift = 0.25 * slope.sign() * inside
    return to_input(peak + shift, input_size, (height, width)), scores


@dataclass(frozen=True)
class Integral:
    """Soft-argmax of logits z: the expectation of the pixel under softmax(beta z) (Sun et al., "Integral Human
    Pose Regression", ECCV 2018, section 2), a Decode and the coordinates that an integral loss compares.

    Debiased (Gu, Yang and Yao, "Removing the Bias of Integral Pose Regression", ICCV 2021): pixels whose logit is
    about 0 are background and pull the expectation to the map's centre c with their share of the mass,
    ``r = hw / sum of exp(beta z)``. Without them it is ``(x_raw - r c) / (1 - r)``, which may lie outside the map.

    Attributes:
        debiased: whether to take the background out; a map with r >= 0.95 keeps its raw expectation.
        beta: sharpness of the softmax, above 0.
    """

    debiased: bool = True
    beta: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.beta, bool) or not isinstance(self.beta, int | float) or not 0 < self.beta < math.inf:
            raise UserError(f"model.beta: found {self.beta!r}, expected a number above 0")

    def __call__(self, maps: Tensor, input_size: Size) -> tuple[Tensor, Tensor]:
        """Points (B, J, 2) in input pixels of logits (B, J, h, w); the highest probability is the score."""
        scores = (self.beta * maps).flatten(-2).softmax(-1).amax(-1)
        return to_input(self.coordinates(maps), input_size, _size(maps)), scores

    def coordinates(self, maps: Tensor) -> Tensor:
        """Points (B, J, 2) in heatmap pixels of logits (B, J, h, w); differentiable."""
        height, width = _size(maps)
        logits = self.beta * maps
        mass = logits.flatten(-2).softmax(-1).unflatten(-1, (height, width))
        x = mass.sum(-2) @ torch.arange(width, device=maps.device, dtype=maps.dtype)
        y = mass.sum(-1) @ torch.arange(height, device=maps.device, dtype=maps.dtype)
        raw = torch.stack((x, y), -1)
        if not self.debiased:
            return raw
        # r is bounded by 1, and 0 where it is not used: infinity, or 1 / (1 - r), would turn the gradient into nan.
        excess = math.log(height * width) - logits.flatten(-2).logsumexp(-1)
        share = excess.clamp(max=0).exp()[..., None]
        kept = share < MOST_BACKGROUND
        share = torch.where(kept, share, torch.zeros_like(share))
        centre = maps.new_tensor([(width - 1) / 2, (height - 1) / 2])
        return (raw - share * centre) / (1 - share)


BY_NAME: Mapping[str, Decode] = {"argmax": argmax, "quarter": quarter}


def decoder(model: nn.Module, name: str = "quarter") -> Decode:
    """How the maps of a model are read: by its own `Integral` where it has one, else by ``name``."""
    if name not in BY_NAME:
        raise UserError(f"evaluate.decoding={name}: expected one of {', '.join(BY_NAME)}")
    integral: Decode | None = getattr(model, "integral", None)
    return BY_NAME[name] if integral is None else integral


def _size(maps: Tensor) -> Size:
    return maps.shape[-2], maps.shape[-1]
