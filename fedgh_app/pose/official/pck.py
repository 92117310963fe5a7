"""PCK of arms: the share of keypoints within a fraction of the longest side of the annotated box."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedgh_app.pose.data.records import DatasetSpec, OnBad
from fedgh_app.pose.evaluation.metrics import mean_present, mean_visible, pck
from fedgh_app.pose.official.people import Compared, compare
from fedgh_app.pose.official.scores import Score, Side

RULE = "reference: the longest side of the annotated box; mean over keypoints"


def score(spec: DatasetSpec, truth: Path, predictions: Path, *, side: Side = "all", on_bad: OnBad = "raise") -> Score:
    """PCK by keypoint (Yang and Ramanan, PAMI 2013, section 7, with the box for a reference), see `people.compare`."""
    compared = compare(spec, truth, predictions, side=side, on_bad=on_bad)
    groups = {name: (place,) for place, name in enumerate(spec.keypoints)}
    return Score(f"{spec.name}, PCK", rows(spec, compared, groups), len(compared.distance), RULE, compared.left_out)


def rows(spec: DatasetSpec, compared: Compared, groups: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, float]]:
    """PCK in percent at each threshold of ``spec``.

    By group, of whose keypoints the unweighted mean is taken; ``mean`` over all keypoints; ``auc``, the area under the
    curve from 0 to the threshold as a share of the most that it could be.
    """
    found = {}
    for threshold in spec.thresholds:
        per_keypoint = pck(compared.distance, compared.counted, threshold)
        values = {name: mean_present(per_keypoint[list(places)]) for name, places in groups.items()}
        # The area under each keypoint's curve: one at distance d is right on [d, threshold].
        area = mean_visible(np.clip(1 - compared.distance / threshold, 0, 1), compared.counted)
        values |= {"mean": mean_present(per_keypoint), "auc": mean_present(area)}
        found[f"PCK@{threshold:g}"] = {name: 100 * value for name, value in values.items()}
    return found
