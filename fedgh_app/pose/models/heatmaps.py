"""Gaussian target heatmaps, and where points of the input lie on a map.

Coordinates: pixel centres lie at integers, in the input and in the heatmap. A heatmap of width w over an
input of width W covers the same extent, so heatmap pixel u and input pixel x are the same point when ``x = (u
+ 0.5) W / w - 0.5``. Sizes are (height, width), points are (x, y).
"""

import torch
from torch import Tensor

Size = tuple[int, int]

# Simple Baselines measures the Gaussian's width on maps this wide; other maps scale it.
REFERENCE_WIDTH = 64


def to_heatmap(points: Tensor, input_size: Size, heatmap_size: Size) -> Tensor:
    """Points (..., 2) in input pixels as points in heatmap pixels."""
    return (points + 0.5) / _scale(points, input_size, heatmap_size) - 0.5


def to_input(points: Tensor, input_size: Size, heatmap_size: Size) -> Tensor:
    """Points (..., 2) in heatmap pixels as points in input pixels."""
    return (points + 0.5) * _scale(points, input_size, heatmap_size) - 0.5


def supervised(keypoints: Tensor, visible: Tensor, input_size: Size, heatmap_size: Size, sigma: float = 2.0) -> Tensor:
    """Keypoints that have a target, (B, J) bool: visible, and at most three sigma outside the map.

    The authors of Simple Baselines draw the line at the same place: beyond it nothing of the Gaussian is left
    on the map, and a network that must answer with an empty map learns nothing about where the keypoint is.
    """
    height, width = heatmap_size
    centre = to_heatmap(keypoints, input_size, heatmap_size)
    reach = 3 * sigma * width / REFERENCE_WIDTH
    last = centre.new_tensor([width - 1, height - 1])
    return visible & ((centre >= -reach) & (centre <= last + reach)).all(-1)


def render_gaussian(
    keypoints: Tensor, visible: Tensor, input_size: Size, heatmap_size: Size, sigma: float = 2.0
) -> Tensor:
    """Target heatmaps: unnormalised Gaussians of height 1 (Xiao et al., ECCV 2018, section 3).

    The centre is the keypoint, not rounded to a pixel: the map says where between two pixels it lies. The map of one
    without a target (see `supervised`) is zero. ``keypoints`` (B, J, 2) are in input pixels, ``visible`` (B, J) bool.
    ``sigma`` is the standard deviation in pixels of a map 64 wide; on a map of width w it is ``sigma * w / 64``.
    """
    counted = supervised(keypoints, visible, input_size, heatmap_size, sigma)
    along_x, along_y = squared_distances(keypoints, counted, input_size, heatmap_size)
    variance = (sigma * heatmap_size[1] / REFERENCE_WIDTH) ** 2
    # A Gaussian is the product of one along x and one along y: h + w exponentials for a map, not h * w.
    column = torch.exp(-along_y / (2 * variance)) * counted[..., None]
    return column[..., :, None] * torch.exp(-along_x / (2 * variance))[..., None, :]


def squared_distances(
    keypoints: Tensor, counted: Tensor, input_size: Size, heatmap_size: Size
) -> tuple[Tensor, Tensor]:
    """Squared distance of every column (B, J, w) and row (B, J, h) to the keypoint, in heatmap pixels.

    Where ``counted`` is false the keypoint may be anything, even nan, and is taken as the origin.
    """
    height, width = heatmap_size
    centre = to_heatmap(keypoints, input_size, heatmap_size)
    centre = torch.where(counted[..., None], centre, torch.zeros_like(centre))
    columns = torch.arange(width, device=centre.device, dtype=centre.dtype)
    rows = torch.arange(height, device=centre.device, dtype=centre.dtype)
    return (columns - centre[..., 0, None]) ** 2, (rows - centre[..., 1, None]) ** 2


def peaks(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Highest pixel (B, J, 2) of each map as whole x, y, and its value (B, J); the first one of equals."""
    # Each row's maximum first: a search for values alone runs several times faster than one for places.
    scores, y = heatmaps.amax(-1).max(-1)
    row = heatmaps.gather(-2, y[..., None, None].expand(*y.shape, 1, heatmaps.shape[-1]))[..., 0, :]
    return torch.stack((row.argmax(-1), y), -1), scores


def size_of(images: Tensor) -> Size:
    """Height and width of images or maps (..., h, w)."""
    return images.shape[-2], images.shape[-1]


def _scale(like: Tensor, input_size: Size, heatmap_size: Size) -> Tensor:
    """Input pixels per heatmap pixel along x and y, (2,)."""
    return like.new_tensor([input_size[1] / heatmap_size[1], input_size[0] / heatmap_size[0]])
