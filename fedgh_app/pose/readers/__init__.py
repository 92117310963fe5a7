"""Annotation files of several formats, all read into `PoseRecord`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fedgh_app.pose.records import BadRecord, DatasetSpec, PoseRecord


def read_records(
    spec: DatasetSpec, root: Path, *, on_bad: Literal["raise", "skip"] = "raise"
) -> tuple[list[PoseRecord], list[BadRecord]]:
    """Read every record under `root`."""
    raise NotImplementedError
