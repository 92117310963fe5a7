"""Heterogeneous heatmap distillation: a teacher's explicit heatmap guides the implicit heatmap of an integral student.

Notation: z are the student's logits, T what the teacher puts out, t the teacher's peak, r the background's share of the
student's softmax. Points are (x, y) and sizes (height, width), in pixels of the student's map, centres at integers.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedgh_app.errors import UserError
from fedgh_app.pose.models.decoding import MOST_BACKGROUND, Integral
from fedgh_app.pose.models.heatmaps import Size, peaks, size_of
from fedgh_app.vision.training import evaluation_mode, outputs_of


@dataclass(frozen=True)
class HHD:
    """Du, Li, Zhao, He and Yu, "Heterogeneous heatmap distillation framework based on unbiased alignment for
    lightweight human pose estimation", Image and Vision Computing 2024.

    Both maps are normalised, each by its own rule; a window is cut from the teacher's map around its peak t, and from
    the student's around the point where its peak must lie for what it decodes to be t; the two windows are compared.

    Attributes:
        weight: on the whole term, beside the student's own loss.
        loss: ``l1`` or ``l2``: absolute or squared differences.
        window: height and width of the window as a share of the map's, in (0, 1].
        normalise: heterogeneous normalisation: the student's softmax(beta z); of the teacher max(T, 0) divided by its
            sum, or softmax(T) where its maps are logits. Differences are summed over the window. Off: z and T are
            compared as the networks put them out, and differences, whose size then depends on the number of pixels, are
            averaged.
        unbiased_crop: off: no window, the whole maps are compared; ``window`` and ``mirror`` then mean nothing.
        mirror: mirror expansion: a cell of the window outside the map takes the value at the opposite offset from the
            window's centre, 0 where that is outside too. Off: such a cell is 0.
    """

    weight: float = 1.0
    loss: Literal["l1", "l2"] = "l1"
    window: float = 0.5
    normalise: bool = True
    unbiased_crop: bool = True
    mirror: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UserError(f"teacher.weight={self.weight}: expected a number of at least 0")
        if self.loss not in ("l1", "l2"):
            raise UserError(f"teacher.loss={self.loss}: expected l1 or l2")
        if not 0 < self.window <= 1:
            raise UserError(f"teacher.window={self.window}: expected a share of the map's size above 0, at most 1")

    def __call__(self, z: Tensor, teacher: Tensor, visible: Tensor, *, integral: Integral, logits: bool) -> Tensor:
        """The weighted mean over visible keypoints, a scalar with a gradient for ``z`` alone; 0 where there are none.

        With ``normalise`` a teacher's map without any positive value, which no rule brings to sum 1, counts as well
        as none: its keypoint is left out.

        Args:
            z: (B, J, h, w), the student's logits.
            teacher: (B, J, h', w'). One of another size is resized to (h, w) first, before any normalisation: bilinear
                between pixel centres, averaging where it shrinks.
            visible: (B, J) bool.
            integral: how the student decodes.
            logits: whether the teacher was trained by cross-entropy, so that softmax(T) is its explicit heatmap.
        """
        size = size_of(z)
        with torch.no_grad():
            target = teacher.detach().to(z.dtype)
            if target.shape[-2:] != size:
                target = interpolate(target, size, mode="bilinear", align_corners=False, antialias=True)
            peak = peaks(target)[0].to(z.dtype)
            if self.normalise:
                target = target.flatten(-2).softmax(-1).view_as(target) if logits else target.clamp(min=0)
            total = target.sum((-2, -1), keepdim=True)
        logits_of_z = integral.beta * z
        mass = logits_of_z.flatten(-2).softmax(-1).view_as(z)
        own = mass if self.normalise else z
        if self.unbiased_crop:
            target = crop(target, peak, self._cells(size), mirror=self.mirror)
            centre = peak if integral.debiased else student_centre(peak, logits_of_z.detach(), mass.detach())
            own = crop(own, centre, self._cells(size), mirror=self.mirror)
        if self.normalise:
            # After the crop, which is linear: a window is a quarter of the map.
            visible = visible & (total[..., 0, 0] > 0)
            target = target / torch.where(total > 0, total, torch.ones_like(total))
        difference = own - target
        cells = difference.abs() if self.loss == "l1" else difference.square()
        terms = cells.sum((-2, -1)) if self.normalise else cells.mean((-2, -1))
        return self.weight * torch.where(visible, terms, 0).sum() / visible.sum().clamp(min=1)

    def _cells(self, size: Size) -> Size:
        """Height and width of the window on a map of this size, at least one cell."""
        return max(1, round(self.window * size[0])), max(1, round(self.window * size[1]))


@dataclass(frozen=True, eq=False)
class Guide:
    """A teacher beside a student in training: what `training.train` adds to the student's own loss.

    Attributes:
        teacher: a trained heatmap model on the device of the training; never changed.
        distillation: what is compared, and how.
        integral: how the student decodes.
        logits: whether the teacher's maps are logits, see `losses.HeatmapLoss.logits`.
        input_size: height and width of the images that the teacher was trained on.
    """

    teacher: nn.Module
    distillation: HHD
    integral: Integral
    logits: bool
    input_size: Size

    def __call__(self, images: Tensor, maps: Tensor, visible: Tensor) -> Tensor:
        """The distillation's scalar for the student's maps (B, J, h, w) of images (B, 3, H, W), on the same images.

        Where those are larger or smaller than the teacher knows, it is shown them resized to its own size.
        """
        if images.shape[-2:] != self.input_size:
            images = interpolate(images, self.input_size, mode="bilinear", align_corners=False, antialias=True)
        with torch.no_grad(), evaluation_mode(self.teacher):
            explicit = outputs_of(self.teacher, images, images.device)
        return self.distillation(maps, explicit, visible, integral=self.integral, logits=self.logits)


def student_centre(peak: Tensor, logits: Tensor, mass: Tensor) -> Tensor:
    """Where the student's peak must lie for its biased expectation to be the teacher's peak t, (B, J, 2).

    The background, a share r of the mass, pulls the expectation to the map's middle c; so from t it is
    (t - r c) / (1 - r), brought back onto the map. Where nearly all is background (r >= 0.95) it is t, as for
    `Integral`. ``peak`` (B, J, 2) is t; ``logits`` and ``mass`` (B, J, h, w) are beta z and its softmax.
    """
    height, width = logits.shape[-2:]
    # Every pixel tells the sum of exp(logits), as exp(logit) / mass; the highest without loss of digits.
    share = height * width * mass.amax((-2, -1)) * (-logits.amax((-2, -1))).exp()
    share = torch.where(share < MOST_BACKGROUND, share, 0)[..., None]
    last = peak.new_tensor([width - 1, height - 1])
    return ((peak - share * last / 2) / (1 - share)).clamp(min=torch.zeros_like(last), max=last)


def crop(maps: Tensor, centre: Tensor, size: Size, *, mirror: bool = True) -> Tensor:
    """Windows (B, J, *size) of maps (B, J, h, w) around points (B, J, 2), read bilinearly.

    Cell i of n lies at the offset i - (n - 1) / 2 from the centre, so the offsets of a window are symmetric. A cell is
    outside where a pixel centre lacks on one side of it: x < 0, x > w - 1, y < 0 or y > h - 1. It takes the value at
    the opposite offset, or with ``mirror`` off, or where that is outside too, 0.
    """
    height, width = maps.shape[-2:]
    row, down, row_inside = _cells(centre[..., 1], size[0], height)
    column, right, column_inside = _cells(centre[..., 0], size[1], width)
    # Cells are a pixel apart, so they all lie at the same place between their pixels: a block of (size + 1) pixels
    # holds all that a window reads, and an axis takes two products.
    index = row[..., :, None] * width + column[..., None, :]
    block = maps.flatten(-2).gather(-1, index.flatten(-2)).view(index.shape)
    above, below = ((1 - down) * row_inside)[..., None], (down * row_inside)[..., None]
    rows = block[..., :-1, :] * above + block[..., 1:, :] * below
    before, after = ((1 - right) * column_inside)[..., None, :], (right * column_inside)[..., None, :]
    window = rows[..., :-1] * before + rows[..., 1:] * after
    if not mirror:
        return window
    outside = 1 - row_inside[..., :, None] * column_inside[..., None, :]
    return window + outside * window.flip(-2, -1)


def _cells(centre: Tensor, count: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the cells of a window along one axis: which pixels (B, J, count + 1) they lie between, clamped to the map; how
    far they are from the first toward the second (B, J, 1); and which (B, J, count) lie on the map, as 0 or 1.
    """
    start = centre - (count - 1) / 2
    first = start.floor()
    pixel = first[..., None] + torch.arange(count + 1, device=centre.device, dtype=centre.dtype)
    between = (start - first)[..., None]
    place = pixel[..., :-1] + between
    inside = ((place >= 0) & (place <= pixels - 1)).to(centre.dtype)
    return pixel.clamp(0, pixels - 1).long(), between, inside
