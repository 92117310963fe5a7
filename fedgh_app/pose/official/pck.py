"""PCK, the share of keypoints within a fraction of a length: of arms the longest side of the box, of LSP the torso."""

from itertools import chain
from pathlib import Path

import numpy as np

from fedgh_app.pose.data.records import DatasetSpec, OnBad
from fedgh_app.pose.evaluation.metrics import mean_present, mean_visible, pck
from fedgh_app.pose.official.people import compare
from fedgh_app.pose.official.scores import Score, Side

RULES = {
    "box": "reference: the longest side of the annotated box; mean over keypoints",
    "torso": "person-centric; reference: left shoulder to right hip; mean over keypoints",
}
# The columns of LSP's published table: left and right are averaged without weights, and the neck belongs to the head.
PAIRS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
LSP_GROUPS = {"head": ("neck", "head_top"), **{joint: (f"left_{joint}", f"right_{joint}") for joint in PAIRS}}


def score(spec: DatasetSpec, truth: Path, predictions: Path, *, side: Side = "all", on_bad: OnBad = "raise") -> Score:
    """PCK in percent at each threshold of ``spec`` (Yang and Ramanan, PAMI 2013, section 7), see `people.compare`.

    By keypoint, or group of LSP's joints, of which the unweighted mean is taken; ``mean`` over all keypoints; ``auc``,
    the area under the curve from 0 to the threshold as a share of the most that it could be.

    Of LSP, ``truth`` is a ``joints.mat`` with left and right from the person's view, as the data sets come. Every joint
    counts, of LSPET those that were placed; where it lacks a torso's joint, the reference is that of
    `readers.intake.reference_length`. Published numbers are of LSP's second thousand, ``side="test"``, at 0.2.
    """
    compared = compare(spec, truth, predictions, side=side, on_bad=on_bad)
    of_lsp = spec.reference == "torso" and {*spec.keypoints}.issuperset(chain(*LSP_GROUPS.values()))
    named = LSP_GROUPS if of_lsp else {name: (name,) for name in spec.keypoints}
    groups = {name: list(map(spec.keypoints.index, group)) for name, group in named.items()}
    rows = {}
    for threshold in spec.thresholds:
        per_keypoint = pck(compared.distance, compared.counted, threshold)
        values = {name: mean_present(per_keypoint[group]) for name, group in groups.items()}
        # The area under each keypoint's curve: one at distance d is right on [d, threshold].
        area = mean_visible(np.clip(1 - compared.distance / threshold, 0, 1), compared.counted)
        values |= {"mean": mean_present(per_keypoint), "auc": mean_present(area)}
        rows[f"PCK@{threshold:g}"] = {name: 100 * value for name, value in values.items()}
    return Score(f"{spec.name}, PCK", rows, len(compared.distance), RULES[spec.reference], compared.left_out)
