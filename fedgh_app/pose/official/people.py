"""Annotated people, and which prediction is of whom: for every protocol but COCO's, which finds that out itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec, OnBad, PoseRecord
from fedgh_app.pose.data.split import on_side
from fedgh_app.pose.official.results import Result, read_results
from fedgh_app.pose.official.scores import Side
from fedgh_app.pose.readers import read_truth


@dataclass(frozen=True, eq=False)
class Compared:
    """N people with J keypoints, truth beside prediction, in the truth file's order.

    `distance` (N, J) in reference lengths, `counted` (N, J) bool: whether the keypoint is annotated. `left_out` people
    had a bad annotation or no prediction.
    """

    distance: np.ndarray
    counted: np.ndarray
    left_out: int


def compare(
    spec: DatasetSpec, truth: Path, predictions: Path, *, side: Side = "all", on_bad: OnBad = "raise"
) -> Compared:
    """Read both files, ``truth`` in the data set's own format, and put them side by side.

    Predictions of people on the other ``side`` are passed over. A bad annotation, or a person without a prediction, is
    a UserError, or with ``on_bad="skip"`` left out and counted; a file that is not as expected, or does not fit the
    other, always is one.
    """
    records, bad = read_truth(spec, truth, on_bad=on_bad)
    results = read_results(predictions, spec)
    by_person = _assigned(records, results, predictions, truth)
    asked = on_side(records, spec, side)
    if not asked:
        raise UserError(f"{truth}: found nobody in split {side}, expected at least one person; see --split")
    missing = [record for record in asked if record.id not in by_person]
    if missing and on_bad == "raise":
        first = f"{missing[0].id} (image {missing[0].image_id})"
        hint = "" if side != "all" else ", or --split test where only test images were predicted"
        raise UserError(
            f"{predictions}: found no prediction for {len(missing)} of {len(asked)} people, first {first}; "
            f"expected one for each{hint}"
        )
    scored = [record for record in asked if record.id in by_person]
    if not scored:
        raise UserError(f"{predictions}: found no prediction for any of {len(asked)} people, expected one for each")
    found = np.stack([by_person[record.id].keypoints for record in scored])
    return Compared(distances(scored, found), np.stack([record.visible for record in scored]), len(missing) + len(bad))


def distances(records: Sequence[PoseRecord], found: np.ndarray) -> np.ndarray:
    """How far the keypoints found (N, J, 2) are from those annotated, (N, J) in reference lengths."""
    true = np.stack([record.keypoints for record in records]).astype(np.float64)
    lengths = np.array([record.reference_length for record in records], dtype=np.float64)
    return np.linalg.norm(found - true, axis=-1) / lengths[:, None]


def _assigned(records: Sequence[PoseRecord], results: Sequence[Result], file: Path, truth: Path) -> dict[str, Result]:
    """The one prediction of each person, by the person's id."""
    by_image: dict[int | str, list[str]] = {}
    for record in records:
        by_image.setdefault(record.image_id, []).append(record.id)
    found: dict[str, Result] = {}
    for place, result in enumerate(results):
        where = f"{file}: entry {place}"
        people = by_image.get(result.image_id)
        if people is None:
            raise UserError(f"{where}: found image_id {result.image_id!r}, expected an image with people in {truth}")
        person = result.annotation_id
        if person is None and len(people) > 1:
            raise UserError(
                f"{where}: found no annotation_id, expected one of {', '.join(people[:4])}: "
                f"image {result.image_id} shows {len(people)} people"
            )
        person = people[0] if person is None else person
        if person not in people:
            some = ", ".join(people[:4])
            raise UserError(f"{where}: found annotation_id {person!r}, expected one of image {result.image_id}: {some}")
        if person in found:
            raise UserError(f"{where}: found a second prediction for {person}, expected one for each person")
        found[person] = result
    return found
