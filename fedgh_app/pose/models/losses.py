"""What a pose network minimises: losses of heatmaps, and of the coordinates that implicit heatmaps stand for.

All average over the keypoints that have a target, never over all of them: a site that annotates three
of sixteen joints gets gradients of the same size as one that annotates all.
"""

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from fedgh_app.errors import UserError
from fedgh_app.pose.models.decoding import Integral
from fedgh_app.pose.models.heatmaps import (
    REFERENCE_WIDTH,
    Size,
    render_gaussian,
    size_of,
    squared_distances,
    supervised,
    to_heatmap,
)

Regulariser = Literal["js", "kl", "none"]


class HeatmapLoss(nn.Module):
    """Mean of one term per keypoint over the keypoints that have a target (see `heatmaps.supervised`).

    ``sigma`` is the target's standard deviation in pixels of a map 64 wide; a map of width w uses ``sigma * w / 64``.
    """

    # Whether the maps that are so trained are logits of a distribution over the pixels, or the Gaussians themselves.
    logits: ClassVar[bool] = False

    def __init__(self, sigma: float = 2.0) -> None:
        super().__init__()
        if not sigma > 0:
            raise UserError(f"loss.sigma: found {sigma!r}, expected a number above 0")
        self.sigma = float(sigma)

    def terms(self, heatmaps: Tensor, keypoints: Tensor, counted: Tensor, input_size: Size) -> Tensor:
        """One value per keypoint, (B, J); those that are not ``counted`` may hold any finite value."""
        raise NotImplementedError

    def total(self, heatmaps: Tensor, keypoints: Tensor, visible: Tensor, input_size: Size) -> tuple[Tensor, Tensor]:
        """Sum of the terms and how many keypoints it is over: two scalars, so that batches can be pooled."""
        values, counted = self._counted_terms(heatmaps, keypoints, visible, input_size)
        return values.sum(), counted.sum()

    def per_example(self, heatmaps: Tensor, keypoints: Tensor, visible: Tensor, input_size: Size) -> Tensor:
        """Each example's own loss (B,): the mean over its keypoints that have a target, 0 where none has."""
        values, counted = self._counted_terms(heatmaps, keypoints, visible, input_size)
        return values.sum(1) / counted.sum(1).clamp(min=1)

    def _counted_terms(
        self, heatmaps: Tensor, keypoints: Tensor, visible: Tensor, input_size: Size
    ) -> tuple[Tensor, Tensor]:
        """The terms, 0 where a keypoint has no target, and which ones have: both (B, J)."""
        size = size_of(heatmaps)
        counted = supervised(keypoints, visible, input_size, size, self.sigma)
        values = self.terms(heatmaps, keypoints, counted, input_size)
        return torch.where(counted, values, torch.zeros_like(values)), counted

    def _exponents(self, keypoints: Tensor, counted: Tensor, input_size: Size, size: Size) -> tuple[Tensor, Tensor]:
        """Of the Gaussian along each column (B, J, w) and each row (B, J, h) of a map."""
        along_x, along_y = squared_distances(keypoints, counted, input_size, size)
        variance = (self.sigma * size[1] / REFERENCE_WIDTH) ** 2
        return -along_x / (2 * variance), -along_y / (2 * variance)

    def forward(self, heatmaps: Tensor, keypoints: Tensor, visible: Tensor, input_size: Size) -> Tensor:
        """Scalar loss of maps (B, J, h, w); 0, with zero gradients, where no keypoint of the batch has a target.

        ``keypoints`` (B, J, 2) are in pixels of the input, ``visible`` (B, J) bool.
        """
        total, count = self.total(heatmaps, keypoints, visible, input_size)
        return total / count.clamp(min=1)


class HeatmapMSE(HeatmapLoss):
    """Half the mean squared error to a Gaussian of height 1 (Xiao et al., ECCV 2018, section 3).

    ``0.5 / n * sum over the n keypoints with a target of mean over pixels (heatmap - Gaussian)^2``: with all
    keypoints visible this is the loss of the authors' code, which divides by invisible ones as well.
    """

    def terms(self, heatmaps: Tensor, keypoints: Tensor, counted: Tensor, input_size: Size) -> Tensor:
        """Half the mean squared error of each map, (B, J)."""
        size = size_of(heatmaps)
        target = render_gaussian(keypoints, counted, input_size, size, self.sigma)
        return 0.5 * ((heatmaps - target) ** 2).flatten(-2).mean(-1)


class HeatmapCrossEntropy(HeatmapLoss):
    """Cross-entropy of the softmax over the pixels against the Gaussian normalised to sum 1, in nats.

    A mean over keypoints with a target. Its least value is the target's entropy, not 0. From scratch on small
    data it learns where the squared error, most of which is background, barely moves.
    """

    logits = True

    def terms(self, heatmaps: Tensor, keypoints: Tensor, counted: Tensor, input_size: Size) -> Tensor:
        """Cross-entropy of each map, (B, J)."""
        size = size_of(heatmaps)
        along_x, along_y = self._exponents(keypoints, counted, input_size, size)
        # As a product of softmaxes the target sums to 1 also for a keypoint beyond the border.
        target = along_y.softmax(-1)[..., :, None] * along_x.softmax(-1)[..., None, :]
        return -(target.flatten(-2) * heatmaps.flatten(-2).log_softmax(-1)).sum(-1)


class IntegralLoss(HeatmapLoss):
    """Error of the integral coordinates (Sun et al., "Integral Human Pose Regression", ECCV 2018) and, so that the
    implicit heatmap behind them has one peak and not any shape of that mean, a regulariser on it (Nibali et al.,
    "Numerical Coordinate Regression with Convolutional Neural Networks", 2018, section 3.2).

    ``|x - x*| / w + |y - y*| / h + weight * D(softmax(beta z), Gaussian)``: x, y are the expectation that the model
    predicts, debiased or not, in heatmap pixels, and x*, y* the truth, so that an error counts as a fraction of the
    map and of the input, whatever their sizes. The Gaussian is normalised to sum 1 over the map; D is in nats.

    Args:
        debiased, beta: those of the model; see `decoding.Integral`.
        regulariser: D. ``js``: the Jensen-Shannon divergence, at most ln 2, which Nibali et al. found best; ``kl``: the
            Kullback-Leibler divergence KL(prediction || Gaussian), which grows with the distance; ``none``.
        weight: of D; 1 in Nibali et al.
        sigma: of the Gaussian, in pixels of a map 64 wide, as for the heatmap losses.
    """

    logits = True

    def __init__(
        self,
        debiased: bool = True,
        beta: float = 1.0,
        regulariser: Regulariser = "js",
        weight: float = 1.0,
        sigma: float = 2.0,
    ) -> None:
        super().__init__(sigma)
        if regulariser not in get_args(Regulariser):
            raise UserError(f"loss.regulariser: found {regulariser!r}, expected js, kl or none")
        if not 0 <= weight < math.inf:
            raise UserError(f"loss.weight: found {weight!r}, expected a number of at least 0")
        self.integral, self.regulariser, self.weight = Integral(debiased, beta), regulariser, float(weight)

    def terms(self, heatmaps: Tensor, keypoints: Tensor, counted: Tensor, input_size: Size) -> Tensor:
        """Error of each keypoint and divergence of its implicit heatmap (B, J, h, w), together (B, J)."""
        size = size_of(heatmaps)
        truth = to_heatmap(keypoints, input_size, size)
        # What does not count may be anything, even nan, whose gradient would be nan.
        found = self.integral.coordinates(heatmaps)
        truth = torch.where(counted[..., None], truth, found.detach())
        error = ((found - truth).abs() / found.new_tensor([size[1], size[0]])).sum(-1)
        if self.regulariser == "none":
            return error
        along_x, along_y = self._exponents(keypoints, counted, input_size, size)
        target = (along_y.log_softmax(-1)[..., :, None] + along_x.log_softmax(-1)[..., None, :]).flatten(-2)
        logarithm = (self.integral.beta * heatmaps).flatten(-2).log_softmax(-1)
        if self.regulariser == "kl":
            return error + self.weight * _divergence(logarithm, target)
        mean = torch.logaddexp(logarithm, target) - math.log(2)
        return error + self.weight * (_divergence(logarithm, mean) + _divergence(target, mean)) / 2


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(p || q) in nats of distributions over the last axis, given as logarithms."""
    return (p.exp() * (p - q)).sum(-1)
