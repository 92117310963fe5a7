"""COCO keypoint results (cocodataset.org, "Results format"): the form of predictions for every data set but one.

A JSON list of ``{"image_id", "category_id", "keypoints": [x1, y1, c1, ...], "score"}``, one entry a predicted person,
in 0-based pixels of the original image. ``image_id`` is the annotation file's own: COCO's number or name, LSP's
number (1 for im00001.jpg), MPII's file name. Where an image holds several people, ``annotation_id`` says which one the
prediction is of; OKS, which finds that out for itself, has no use for it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec

EXPECTED = 'expected COCO keypoint results: [{"image_id", "category_id", "keypoints", "score"}, ...]'
KINDS = {"image_id": (int, str), "category_id": (int,), "keypoints": (list,), "score": (int, float)}
DECIMALS = 4  # of a pixel and of a confidence, in a file


@dataclass(frozen=True, eq=False)
class Result:
    """One predicted person: `keypoints` (J, 2) in pixels, `confidences` (J,), `score` of the whole person."""

    image_id: int | str
    category_id: int
    keypoints: np.ndarray
    confidences: np.ndarray
    score: float
    annotation_id: str | None = None

    def as_json(self) -> dict[str, object]:
        """The entry of a results file; the score is written in full, since it orders people."""
        triples = np.concatenate([self.keypoints, self.confidences[:, None]], axis=1)
        entry: dict[str, object] = {
            "image_id": self.image_id,
            "category_id": self.category_id,
            "keypoints": np.round(triples.astype(float), DECIMALS).ravel().tolist(),
            "score": self.score,
        }
        return entry if self.annotation_id is None else {**entry, "annotation_id": self.annotation_id}


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write a results file."""
    path.write_text(json.dumps([result.as_json() for result in results]))


def read_results(path: Path, spec: DatasetSpec) -> list[Result]:
    """The entries of a results file, each with the keypoints of ``spec``.

    Raises UserError, which names the file and the entry, for anything else: nothing is repaired.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {EXPECTED}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON; {EXPECTED}") from None
    if not isinstance(content, list):
        raise UserError(f"{path}: found a JSON {type(content).__name__}; {EXPECTED}")
    if not content:
        raise UserError(f"{path}: found no prediction, expected at least one")
    return [_result(f"{path}: entry {place}", entry, spec) for place, entry in enumerate(content)]


def _result(where: str, entry: object, spec: DatasetSpec) -> Result:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: found {json.dumps(entry)[:40]}, expected an object")
    for key, kinds in KINDS.items():
        if key not in entry:
            raise UserError(f"{where}: found no {key!r}; {EXPECTED}")
        if isinstance(entry[key], bool) or not isinstance(entry[key], kinds):
            raise UserError(f"{where}: found {key}={str(entry[key])[:40]}; {EXPECTED}")
    numbers = _numbers(entry["keypoints"])
    if numbers is None:
        raise UserError(f"{where}: found keypoints that are no list of numbers, expected x, y, confidence of each")
    if len(numbers) != 3 * spec.num_keypoints:
        raise UserError(
            f"{where}: found {len(numbers)} numbers in keypoints, expected {3 * spec.num_keypoints}: "
            f"x, y, confidence of each of the {spec.num_keypoints} keypoints of {spec.name}"
        )
    triples = numbers.reshape(-1, 3)
    for name, triple in zip(spec.keypoints, triples, strict=True):
        if not np.isfinite(triple).all():
            raise UserError(f"{where}: found {name} at {triple.tolist()}, expected finite numbers")
    score = _numbers([entry["score"]])
    if score is None or not np.isfinite(score[0]):
        raise UserError(f"{where}: found score={str(entry['score'])[:40]}, expected a finite number")
    whose = None if entry.get("annotation_id") is None else str(entry["annotation_id"])
    return Result(entry["image_id"], entry["category_id"], triples[:, :2], triples[:, 2], float(score[0]), whose)


def _numbers(values: Sequence[object]) -> np.ndarray | None:
    """``values`` as float64, None where one of them is no number."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:  # a whole number beyond what a float holds
        return None
