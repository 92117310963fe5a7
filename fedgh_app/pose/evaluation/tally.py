"""What of an evaluation adds up over clients, keypoint by keypoint, and what the sums come to."""

from collections.abc import Iterable, Sequence

import numpy as np

from fedgh_app.pose.evaluation.metrics import Evaluation, mean_present
from fedgh_app.vision.tally import EXAMPLES, Scores, Tally

# Of each keypoint: examples in which it is visible; of those, how many lie within the headline threshold (PCK); the sum
# over them of max(0, 1 - distance / threshold), which makes the area under the PCK curve; examples that count for
# heatmap accuracy; of those, how many hit.
BOUNDS = {
    "visible": EXAMPLES,
    "correct": "visible",
    "area": "visible",
    "heatmap_visible": EXAMPLES,
    "heatmap_correct": "heatmap_visible",
}


def tally(evaluation: Evaluation, keypoints: Sequence[str], threshold: float) -> Tally:
    """Count an evaluation of keypoints of these J names, with PCK at a ``threshold`` in reference lengths."""
    if len(keypoints) != evaluation.visible.shape[1]:
        raise ValueError(f"{len(keypoints)} keypoint names for {evaluation.visible.shape[1]} keypoints")
    counts: dict[str, dict[str, float]] = {}
    for j, name in enumerate(keypoints):
        distance = evaluation.distance[evaluation.visible[:, j], j]
        hits = evaluation.heatmap_hit[:, j]
        hits = hits[~np.isnan(hits)]
        counts[name] = {
            "visible": len(distance),
            "correct": int((distance <= threshold).sum()),
            # A keypoint at distance d is correct on the part [d, threshold] of the curve; a prediction of nan nowhere.
            "area": float(np.nan_to_num(np.clip(1 - distance.astype(np.float64) / threshold, 0, 1)).sum()),
            "heatmap_visible": len(hits),
            "heatmap_correct": int(hits.sum()),
        }
    return Tally(counts)


def scores(tally: Tally) -> Scores:
    """PCK, the area under its curve divided by the threshold, and heatmap accuracy, each a mean over keypoints.

    A keypoint that was never visible has no PCK and is in no mean.
    """
    counts = tally.sums
    parts = {name: _ratio(count["correct"], count["visible"]) for name, count in counts.items()}
    return Scores(
        score=_mean(parts.values()),
        parts=parts,
        more={
            "auc": _mean(_ratio(count["area"], count["visible"]) for count in counts.values()),
            "heatmap_accuracy": _mean(_ratio(c["heatmap_correct"], c["heatmap_visible"]) for c in counts.values()),
        },
        labelled={name: int(count["visible"]) for name, count in counts.items()},
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _mean(values: Iterable[float]) -> float:
    return mean_present(np.array(list(values), dtype=np.float64))
