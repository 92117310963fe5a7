"""Metrics as counts that add up: what one client reports, and what the server sums over clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedgh_app.pose.evaluation.metrics import Evaluation, mean_present
from fedgh_app.vision.tally import Scores


@dataclass(frozen=True)
class Count:
    """What was counted for one keypoint.

    Attributes:
        visible: examples in which it is visible.
        correct: of those, how many lie within the headline threshold (PCK).
        area: sum over them of max(0, 1 - distance / threshold), which makes the area under the PCK curve.
        heatmap_visible: examples that count for heatmap accuracy.
        heatmap_correct: of those, how many hit.
    """

    visible: int = 0
    correct: int = 0
    area: float = 0.0
    heatmap_visible: int = 0
    heatmap_correct: int = 0

    def __add__(self, other: Count) -> Count:
        """Both counted together."""
        return Count(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Tally:
    """Counts of an evaluation, by keypoint name. A keypoint that was never visible has no PCK and is in no mean."""

    counts: Mapping[str, Count]

    def __add__(self, other: Tally) -> Tally:
        """Both evaluations as one; keypoints that only one of them has are kept."""
        names = list(dict.fromkeys([*self.counts, *other.counts]))
        return Tally({n: self.counts.get(n, Count()) + other.counts.get(n, Count()) for n in names})

    @property
    def per_keypoint(self) -> dict[str, float]:
        """PCK of each keypoint, 0 to 1; nan where it was never visible."""
        return {name: _ratio(count.correct, count.visible) for name, count in self.counts.items()}

    @property
    def pck(self) -> float:
        """Mean over keypoints of PCK at the headline threshold."""
        return _mean(self.per_keypoint.values())

    @property
    def auc(self) -> float:
        """Mean over keypoints of the area under the PCK curve, divided by the threshold."""
        return _mean(_ratio(count.area, count.visible) for count in self.counts.values())

    @property
    def heatmap_accuracy(self) -> float:
        """Mean over keypoints of heatmap accuracy (the Simple Baselines accuracy)."""
        return _mean(_ratio(c.heatmap_correct, c.heatmap_visible) for c in self.counts.values())

    def as_scalars(self) -> dict[str, int | float]:
        """Every count under ``<field>/<keypoint>``, as a message carries it."""
        return {f"{field}/{name}": value for name, count in self.counts.items() for field, value in vars(count).items()}

    @classmethod
    def from_scalars(cls, scalars: Mapping[str, int | float]) -> Tally:
        """Undo `as_scalars`; other keys are passed over."""
        fields = tuple(vars(Count()))
        counts: dict[str, dict[str, int | float]] = {}
        for key, value in scalars.items():
            field, _, name = key.partition("/")
            if name and field in fields:
                counts.setdefault(name, {})[field] = value
        return cls({name: Count(**values) for name, values in counts.items()})  # type: ignore[arg-type]  # whole where it was

    def scores(self) -> Scores:
        """What it comes to."""
        return Scores(
            score=self.pck,
            parts=self.per_keypoint,
            more={"heatmap_accuracy": self.heatmap_accuracy, "auc": self.auc},
            labelled={name: count.visible for name, count in self.counts.items()},
        )


def tally(evaluation: Evaluation, keypoints: Sequence[str], threshold: float) -> Tally:
    """Count an evaluation.

    Args:
        evaluation: predictions for N examples with J keypoints.
        keypoints: the J names.
        threshold: PCK threshold, in reference lengths.
    """
    if len(keypoints) != evaluation.visible.shape[1]:
        raise ValueError(f"{len(keypoints)} keypoint names for {evaluation.visible.shape[1]} keypoints")
    counts = {}
    for j, name in enumerate(keypoints):
        distance = evaluation.distance[evaluation.visible[:, j], j]
        hits = evaluation.heatmap_hit[:, j]
        hits = hits[~np.isnan(hits)]
        counts[name] = Count(
            visible=len(distance),
            correct=int((distance <= threshold).sum()),
            # A keypoint at distance d is correct on the part [d, threshold] of the curve; a prediction of nan nowhere.
            area=float(np.nan_to_num(np.clip(1 - distance.astype(np.float64) / threshold, 0, 1)).sum()),
            heatmap_visible=len(hits),
            heatmap_correct=int(hits.sum()),
        )
    return Tally(counts)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _mean(values: Iterable[float]) -> float:
    return mean_present(np.array(list(values), dtype=np.float64))
