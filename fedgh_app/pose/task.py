"""Pose estimation as a task. A stand-in: only what the server needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from fedgh_app.pose.data.records import DatasetSpec, load_spec
from fedgh_app.pose.evaluation.metrics import mean_present
from fedgh_app.vision.tally import EXAMPLES, Scores, Tally


class Pose:
    """The task of finding keypoints."""

    name = "pose"
    part = "keypoint"
    metric = "PCK"
    outputs = ("heatmaps",)
    bounds: Mapping[str, str] = MappingProxyType(
        {
            "visible": EXAMPLES,
            "correct": "visible",
            "area": "visible",
            "heatmap_visible": EXAMPLES,
            "heatmap_correct": "heatmap_visible",
        }
    )

    def load_spec(self, name: str) -> DatasetSpec:
        """What a data set is."""
        return load_spec(name)

    def scores(self, tally: Tally) -> Scores:
        """PCK by keypoint and its mean, the area under the PCK curve, heatmap accuracy."""
        sums = tally.sums

        def ratios(of: str, to: str) -> dict[str, float]:
            return {name: one[of] / one[to] if one[to] else float("nan") for name, one in sums.items()}

        def mean(values: dict[str, float]) -> float:
            return mean_present(np.array(list(values.values()), dtype=np.float64))

        parts = ratios("correct", "visible")
        more = {
            "auc": mean(ratios("area", "visible")),
            "heatmap_accuracy": mean(ratios("heatmap_correct", "heatmap_visible")),
        }
        return Scores(mean(parts), parts, more, {name: int(one["visible"]) for name, one in sums.items()})


POSE = Pose()
