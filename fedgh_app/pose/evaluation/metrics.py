"""How good predicted keypoints are: PCK, PCKh, area under the PCK curve, heatmap accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgh_app.pose.models.decoding import Integral
from fedgh_app.pose.models.heatmaps import Size, peaks, render_gaussian

Array = np.ndarray

# The official MPII evaluation's order of joints, and its groups: left and right are averaged without weights.
MPII_JOINTS = 16
MPII_GROUPS: Mapping[str, tuple[int, ...]] = {
    "head": (9,),
    "shoulder": (12, 13),
    "elbow": (11, 14),
    "wrist": (10, 15),
    "hip": (2, 3),
    "knee": (1, 4),
    "ankle": (0, 5),
}
MPII_LEFT_OUT = (6, 7)  # pelvis and thorax count in no mean


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model's predictions for N examples with J keypoints, next to the truth. Arrays on the CPU.

    Attributes:
        distance: (N, J) error of the decoded keypoint / the example's reference length.
        visible: (N, J) bool; the other fields mean nothing where it is false.
        heatmap_hit: (N, J) 1 or 0, nan where heatmap accuracy ignores the keypoint.
        coordinates: (N, J, 2) predictions in input pixels.
        scores: (N, J) height of the heatmap at its peak; of an implicit heatmap, of its softmax.
        index: (N,) place of each example in its data set.
        loss: mean over the ``loss_terms`` keypoints that have a target; nan if there are none.
    """

    distance: Array
    visible: Array
    heatmap_hit: Array
    coordinates: Array
    scores: Array
    index: Array
    loss: float
    loss_terms: int


def pck(distance: Array, visible: Array, threshold: float) -> Array:
    """Percentage of correct keypoints as a fraction, (J,): visible and at most ``threshold`` away.

    Yang and Ramanan, "Articulated human detection with flexible mixtures of parts", PAMI 2013, section 7. ``distance``
    (N, J) is in reference lengths, nan is wrong; a keypoint that is never ``visible`` (N, J) bool gets nan.
    """
    return mean_visible(distance <= threshold, visible)


def pckh(distance: Array, visible: Array, threshold: float = 0.5) -> dict[str, float]:
    """PCKh of the 16 MPII joints by the official groups, and their mean, as fractions.

    Andriluka et al., "2D Human Pose Estimation: New Benchmark and State of the Art Analysis", CVPR 2014,
    section 4. ``distance`` (N, 16) is in units of 0.6 x the diagonal of the head box. ``mean`` is over all
    annotated joints but pelvis and thorax, each weighted by how often it is annotated; it so counts the neck,
    which has no group.
    """
    if visible.shape[1] != MPII_JOINTS:
        raise ValueError(f"found {visible.shape[1]} joints, expected the {MPII_JOINTS} of MPII")
    per_joint = pck(distance, visible, threshold)
    result = {name: mean_present(per_joint[list(joints)]) for name, joints in MPII_GROUPS.items()}
    kept = [j for j in range(MPII_JOINTS) if j not in MPII_LEFT_OUT]
    annotated = np.asarray(visible, bool)[:, kept]
    correct = annotated & (distance[:, kept] <= threshold)
    result["mean"] = float(correct.sum() / annotated.sum()) if annotated.any() else float("nan")
    return result


def heatmap_hits(
    heatmaps: Tensor, keypoints: Tensor, visible: Tensor, input_size: Size, integral: Integral | None = None
) -> Tensor:
    """Whether each heatmap's peak is near its target's, (B, J) float: 1, 0, or nan where ignored.

    The accuracy of the Simple Baselines code (Xiao et al., ECCV 2018): the distance of the peaks, x in tenths
    of the map's width and y in tenths of its height, is below 0.5. As there, a keypoint is ignored where its
    target's peak has x <= 1 or y <= 1, which an invisible keypoint's empty map has too.

    The peak of an implicit heatmap need not be where its keypoint is: for maps that are read by an ``integral``, the
    point that this finds takes the place of the predicted peak.
    """
    height, width = heatmaps.shape[-2:]
    target, _ = peaks(render_gaussian(keypoints, visible, input_size, (height, width)))
    found = peaks(heatmaps)[0] if integral is None else integral.coordinates(heatmaps)
    tenth = torch.tensor([width / 10, height / 10], device=heatmaps.device)
    near = torch.linalg.vector_norm((found - target) / tenth, dim=-1) < 0.5
    return torch.where((target > 1).all(-1), near.float(), torch.nan)


def mean_present(values: Array) -> float:
    """Mean of the values that are not nan; nan if there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def mean_visible(values: Array, visible: Array) -> Array:
    """Mean of each column of (N, J) over its visible rows, (J,); nan where there are none."""
    visible = np.asarray(visible, bool)
    count = visible.sum(0)
    total = np.where(visible, values, 0).sum(0, dtype=np.float64)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
