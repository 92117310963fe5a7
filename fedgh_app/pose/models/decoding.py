"""From the maps that a network puts out to keypoints: how each head's maps are read, and how sure it is of them.

Coordinates are those of `heatmaps`: pixel centres at integers, points (x, y), sizes (height, width).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedgh_app.errors import UserError
from fedgh_app.pose.checks import DECODINGS
from fedgh_app.pose.models.heatmaps import REFERENCE_WIDTH, Size, peaks, size_of, to_input

# Maps (B, J, h, w) and the input's size to points (B, J, 2) in input pixels and scores (B, J).
Decode = Callable[[Tensor, Size], tuple[Tensor, Tensor]]
# Maps (B, J, h, w), whatever they hold, to how sure the network is of each keypoint, (B, J) from 0 to 1.
Confidence = Callable[[Tensor], Tensor]

# From here on the map is (nearly) all background and its point is not told apart from it.
MOST_BACKGROUND = 0.95


def argmax(maps: Tensor, input_size: Size) -> tuple[Tensor, Tensor]:
    """The highest pixel of each map, and its value as the score."""
    peak, scores = peaks(maps)
    return to_input(peak.to(maps.dtype), input_size, size_of(maps)), scores


def quarter(maps: Tensor, input_size: Size) -> tuple[Tensor, Tensor]:
    """The highest pixel, moved a quarter of a heatmap pixel toward the higher of its two neighbours along x,
    and likewise along y (Xiao et al., ECCV 2018, section 3); the highest pixel's value as the score.

    Not moved along an axis where the neighbours are equal or where the peak lies on the map's border: there a
    neighbour is missing.
    """
    height, width = size_of(maps)
    peak, scores = peaks(maps)
    flat, (x, y) = maps.flatten(-2), peak.unbind(-1)

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
class Dark:
    """Distribution-aware decoding (Zhang et al., "Distribution-Aware Coordinate Representation for Human Pose
    Estimation", CVPR 2020, section 3.2), a Decode; the highest pixel's value is the score.

    A map is taken for a Gaussian and noise. Smoothed by a Gaussian as wide as the trained one its logarithm is
    (nearly) a parabola, and one Newton step leads from the highest pixel m to the top: ``m - H^-1 g``, with the
    gradient g and the Hessian H by central differences, the second ones two pixels apart as in the authors' code.

    The point is that of `quarter` where the map is no such Gaussian: H has no maximum, or it lies beyond the 5 x 5
    pixels that were looked at; and where m is nearer than 1.5 sigma to the border: smoothing misses what is beyond,
    and pulls the top inward by more than the quarter shift errs (measured).

    Attributes:
        sigma: of the target that the maps were trained to, in pixels of a map 64 wide.
        logits: whether the maps are logits of a distribution over the pixels, as a cross-entropy trains them. It is
            their softmax that approximates the (normalised) Gaussian, and so what is smoothed.
    """

    sigma: float = 2.0
    logits: bool = False

    def __call__(self, maps: Tensor, input_size: Size) -> tuple[Tensor, Tensor]:
        """Points (B, J, 2) in input pixels of maps (B, J, h, w), and scores (B, J)."""
        size = size_of(maps)
        peak, scores = peaks(maps)
        heatmaps = maps.flatten(-2).softmax(-1).unflatten(-1, size) if self.logits else maps
        smooth = self._smoothed(heatmaps, peak).clamp(min=torch.finfo(maps.dtype).tiny)
        f = smooth.log().movedim((-2, -1), (0, 1))  # f[2 + v, 2 + u] is at peak + (u, v)
        x, y = (f[2, 3] - f[2, 1]) / 2, (f[3, 2] - f[1, 2]) / 2
        xx, yy = (f[2, 4] - 2 * f[2, 2] + f[2, 0]) / 4, (f[4, 2] - 2 * f[2, 2] + f[0, 2]) / 4
        xy = (f[3, 3] - f[3, 1] - f[1, 3] + f[1, 1]) / 4
        determinant = xx * yy - xy * xy
        step = torch.stack((xy * y - yy * x, xy * x - xx * y), -1) / determinant[..., None]
        last = torch.tensor([size[1] - 1, size[0] - 1], device=peak.device)
        room = torch.minimum(peak, last - peak).amin(-1) + 0.5
        found = (xx < 0) & (determinant > 0) & (step.abs() <= 2).all(-1) & (room >= 1.5 * self._sigma(size))
        points, fallback = to_input(peak + step, input_size, size), quarter(maps, input_size)[0]
        return torch.where(found[..., None], points, fallback), scores

    def _sigma(self, size: Size) -> float:
        """The Gaussian's width in pixels of a map of this size."""
        return self.sigma * size[1] / REFERENCE_WIDTH

    def _smoothed(self, heatmaps: Tensor, peak: Tensor) -> Tensor:
        """The smoothed maps at the 5 x 5 pixels around each peak, (B, J, 5, 5); beyond the border a map is 0."""
        height, width = size_of(heatmaps)
        variance = self._sigma((height, width)) ** 2

        def kernel(middle: Tensor, extent: int) -> Tensor:
            near = middle[..., None] + torch.arange(-2, 3, device=middle.device)
            distance = near[..., None] - torch.arange(extent, device=middle.device)
            return torch.exp(-(distance.to(heatmaps.dtype) ** 2) / (2 * variance))

        x, y = peak.unbind(-1)
        return kernel(y, height) @ heatmaps @ kernel(x, width).mT


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
        return to_input(self.coordinates(maps), input_size, size_of(maps)), scores

    def coordinates(self, maps: Tensor) -> Tensor:
        """Points (B, J, 2) in heatmap pixels of logits (B, J, h, w); differentiable."""
        height, width = size_of(maps)
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


class MapLoss(Protocol):
    """What reading a map needs to know of the loss that trained it; see `losses.HeatmapLoss`."""

    sigma: float
    logits: ClassVar[bool]


def decoder(model: nn.Module, name: str, loss: MapLoss) -> Decode:
    """How a model's maps are read: by its own `Integral`, else by ``name``, of `DECODINGS`; UserError for another."""
    if name not in DECODINGS:
        raise UserError(f"evaluate.decoding={name}: expected {', '.join(DECODINGS[:-1])} or {DECODINGS[-1]}")
    by_name: dict[str, Decode] = {"argmax": argmax, "quarter": quarter, "dark": Dark(loss.sigma, loss.logits)}
    return getattr(model, "integral", None) or by_name[name]


def confidence_of(model: nn.Module, loss: MapLoss) -> Confidence:
    """How sure a model is of a keypoint: what its maps mean depends on what it was trained to."""
    if not loss.logits:
        return peak_height
    integral = getattr(model, "integral", None)
    return MassAtPeak(sigma=loss.sigma, beta=1.0 if integral is None else integral.beta)


def flip_tested(decode: Decode, maps: Tensor, mirrored: Tensor, input_size: Size) -> tuple[Tensor, Tensor]:
    """Points (B, J, 2) in input pixels and scores (B, J) of two sets of maps (B, J, h, w) of the same images.

    The maps are averaged, as in Simple Baselines (Xiao et al., ECCV 2018, section 3). Logits are too: that is the
    normalised geometric mean of the two distributions, whose peak, of two equally wide Gaussians, lies midway. Of an
    `Integral` the points are averaged: each is debiased by the share of background in its own map, which a mean of
    maps has lost. Undebiased it is the same as averaging the two distributions. ``mirrored`` are those of the mirrored
    images, mirrored back; see `mirrored_back`.
    """
    if not isinstance(decode, Integral):
        return decode((maps + mirrored) / 2, input_size)
    (points, scores), (others, other_scores) = decode(maps, input_size), decode(mirrored, input_size)
    return (points + others) / 2, (scores + other_scores) / 2


def mirrored_back(maps: Tensor, flip_permutation: Sequence[int] | np.ndarray) -> Tensor:
    """Maps (B, J, h, w) of mirrored images as maps of the images: left is right, and the left wrist the right one.

    The codes of Simple Baselines and HRNet also shift by a pixel: that makes up for their heatmap pixel u standing
    for the input's x = 4 u (Huang et al., "The Devil is in the Details: Delving into Unbiased Data Processing for
    Human Pose Estimation", CVPR 2020, section 3). Here it is x = 4 u + 1.5, whose mirror image W - 1 - x is that of
    w - 1 - u, and maps meet as they are.
    """
    return maps[:, torch.as_tensor(flip_permutation, device=maps.device)].flip(-1)


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
        height, width = size_of(maps)
        mass = (self.beta * maps).flatten(-2).softmax(-1).unflatten(-1, (height, width))
        x, y = peaks(maps)[0].unbind(-1)
        reach = max(1.0, 2 * self.sigma * width / REFERENCE_WIDTH)
        columns = (torch.arange(width, device=maps.device) - x[..., None]).abs() <= reach
        rows = (torch.arange(height, device=maps.device) - y[..., None]).abs() <= reach
        return (mass * columns[..., None, :] * rows[..., :, None]).sum((-2, -1))
