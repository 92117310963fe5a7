"""Pose estimation as a task: as much of it as reports need."""

from __future__ import annotations

from fedgh_app.pose.card import card
from fedgh_app.pose.data.records import load_spec


class PoseTask:
    """Pose estimation; see `fedgh_app.task.Task`."""

    name = "pose"
    part = "keypoint"
    metric = "PCK"
    load_spec = staticmethod(load_spec)
    card = staticmethod(card)


POSE = PoseTask()
