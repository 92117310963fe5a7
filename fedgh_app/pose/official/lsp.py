"""PCK of Leeds Sports Pose and its extended set, relative to the torso, left and right as the person has them."""

from __future__ import annotations

from pathlib import Path

from fedgh_app.pose.data.records import DatasetSpec, OnBad
from fedgh_app.pose.official.pck import rows
from fedgh_app.pose.official.people import compare
from fedgh_app.pose.official.scores import Score, Side

# The published table's columns: left and right are averaged without weights, and the neck belongs to the head.
GROUPS = {
    "head": ("neck", "head_top"),
    "shoulder": ("left_shoulder", "right_shoulder"),
    "elbow": ("left_elbow", "right_elbow"),
    "wrist": ("left_wrist", "right_wrist"),
    "hip": ("left_hip", "right_hip"),
    "knee": ("left_knee", "right_knee"),
    "ankle": ("left_ankle", "right_ankle"),
}
RULE = "person-centric; reference: left shoulder to right hip; mean over the 14 joints"


def score(spec: DatasetSpec, truth: Path, predictions: Path, *, side: Side = "all", on_bad: OnBad = "raise") -> Score:
    """PCK by group of joints (Yang and Ramanan, PAMI 2013, section 7; 0.2 of the torso is what papers compare).

    ``truth`` is a ``joints.mat`` with left and right from the person's view, as the data sets come. Of LSP every joint
    counts, of LSPET those that were placed; where it lacks a torso's joint, the reference is that of
    `readers.intake.reference_length`. Published numbers are of LSP's second thousand, ``side="test"``.
    """
    compared = compare(spec, truth, predictions, side=side, on_bad=on_bad)
    index = spec.keypoint_index
    groups = {name: tuple(index[joint] for joint in joints) for name, joints in GROUPS.items()}
    return Score(f"{spec.name}, PCK", rows(spec, compared, groups), len(compared.distance), RULE, compared.left_out)
