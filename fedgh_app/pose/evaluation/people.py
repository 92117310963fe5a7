"""A model's predictions for an annotated data set, in pixels of the original images, and how far off they are."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.data.cache import check_image
from fedgh_app.pose.data.records import PoseRecord
from fedgh_app.pose.official.coco import suppress
from fedgh_app.pose.official.people import distances
from fedgh_app.pose.official.results import Result
from fedgh_app.pose.prediction.boxes import PERSON, Box, box_of
from fedgh_app.pose.prediction.prediction import Frame, Person, Predictor, Source
from fedgh_app.pose.readers.intake import read_json
from fedgh_app.vision.images import read_image

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Errors:
    """N annotated people and what was predicted for each.

    `records` (N), `keypoints` (N, J, 2) the predictions in image pixels, `distance` (N, J) in reference lengths, which
    means nothing where `visible` (N, J) is false.
    """

    records: Sequence[PoseRecord]
    keypoints: np.ndarray
    distance: np.ndarray
    visible: np.ndarray


def predict_people(
    predictor: Predictor, records: Sequence[PoseRecord], *, skip_bad: bool = False, progress: Progress | None = None
) -> list[tuple[PoseRecord, Person]]:
    """The predicted keypoints of annotated people, in whose annotated boxes the model looks.

    An image that cannot be read or does not fit its annotations raises a `UserError`, or with ``skip_bad`` is left out.
    """
    by_image: dict[Path, list[PoseRecord]] = {}
    for record in records:
        by_image.setdefault(record.image, []).append(record)
    shown: list[list[PoseRecord]] = []

    def frames() -> Iterator[Frame]:
        for path, people in by_image.items():
            try:
                image = read_image(path)
                for record in people:
                    check_image(record, image)
            except UserError:
                if not skip_bad:
                    raise
                continue
            shown.append(people)
            yield Frame(Source(path), None, image, [Box(record.box) for record in people])

    found: list[tuple[PoseRecord, Person]] = []
    for place, (_, people) in enumerate(predictor(frames())):
        found += zip(shown[place], people, strict=True)
        if progress is not None:
            progress(len(found), len(records))
    return found


def predict_detections(
    predictor: Predictor,
    images: Mapping[int | str, Path],
    boxes: Mapping[int | str, Sequence[Box]],
    *,
    progress: Progress | None = None,
) -> dict[int | str, list[Person]]:
    """The predicted keypoints of detected people, by image id; images without a detection are left out."""
    asked = [name for name in images if boxes.get(name)]

    def frames() -> Iterator[Frame]:
        for name in asked:
            image = read_image(images[name])
            for box in boxes[name]:
                box.check(str(images[name]), image.shape[1], image.shape[0])
            yield Frame(Source(images[name]), None, image, boxes[name])

    found: dict[int | str, list[Person]] = {}
    for name, (_, people) in zip(asked, predictor(frames()), strict=True):
        found[name] = people
        if progress is not None:
            progress(len(found), len(asked))
    return found


def read_detections(path: Path, images: Container[int | str]) -> dict[int | str, list[Box]]:
    """The boxes of people in COCO detection results, ``[{"image_id", "category_id", "bbox", "score"}, ...]``.

    Other categories are passed over. Raises UserError for anything else, and for an image that is not in ``images``.
    """
    content = read_json(path)
    expected = 'expected COCO detections: [{"image_id", "category_id", "bbox", "score"}, ...]'
    if not isinstance(content, list):
        raise UserError(f"{path}: found a JSON {type(content).__name__}; {expected}")
    found: dict[int | str, list[Box]] = {}
    for place, entry in enumerate(content):
        where = f"{path}: entry {place}"
        if not isinstance(entry, dict) or "category_id" not in entry:
            raise UserError(f"{where}: {expected}")
        if entry["category_id"] != PERSON:
            continue
        if any(entry.get(key) is None for key in ("image_id", "bbox", "score")):
            raise UserError(f"{where}: {expected}")
        name = entry["image_id"]
        if type(name) not in (int, str) or name not in images:
            raise UserError(f"{where}: found image_id {name!r}, expected an image of the data set")
        found.setdefault(name, []).append(box_of(entry["bbox"], where, entry["score"]))
    if not found:
        raise UserError(f"{path}: found no person (category_id {PERSON}), expected at least one")
    return found


def people_results(found: Iterable[tuple[PoseRecord, Person]]) -> list[Result]:
    """Predictions for annotated people as COCO results; the score is the mean confidence of the keypoints."""
    return [_result(record.image_id, person, float(person.scores.mean()), record.id) for record, person in found]


def detection_results(found: Mapping[int | str, Sequence[Person]], nms: float) -> list[Result]:
    """Predictions for detected people as COCO results, without doubles.

    A person's score is the mean confidence of the keypoints times the score of the detection, as in Simple Baselines
    (which leaves confidences below 0.2 out of the mean). ``nms`` is the OKS beyond which the worse one of two goes; 1
    keeps all.
    """
    kept: list[Result] = []
    for name, people in found.items():
        results = [_result(name, person, float(person.scores.mean()) * (person.box.score or 0.0)) for person in people]
        areas = np.array([float(person.box.sides[2] * person.box.sides[3]) for person in people])
        kept += [results[place] for place in suppress(results, areas, nms)]
    return kept


def _result(image_id: int | str, person: Person, score: float, annotation_id: str | None = None) -> Result:
    return Result(image_id, PERSON, person.keypoints, person.scores, score, annotation_id)


def errors_of(found: Sequence[tuple[PoseRecord, Person]]) -> Errors:
    """How far each person's prediction is off."""
    return _errors([record for record, _ in found], np.stack([person.keypoints for _, person in found]))


def nearest_errors(records: Sequence[PoseRecord], results: Iterable[Result]) -> Errors | None:
    """Each annotated person with the prediction in the image that is nearest; those without any are left out."""
    by_image: dict[int | str, list[np.ndarray]] = {}
    for result in results:
        by_image.setdefault(result.image_id, []).append(result.keypoints)
    met = [record for record in records if record.image_id in by_image]
    if not met:
        return None
    nearest = []
    for record in met:
        candidates = np.stack(by_image[record.image_id])
        off = np.linalg.norm(candidates - record.keypoints, axis=-1)[:, record.visible].mean(-1)
        nearest.append(candidates[off.argmin()])
    return _errors(met, np.stack(nearest))


def _errors(records: Sequence[PoseRecord], keypoints: np.ndarray) -> Errors:
    return Errors(records, keypoints, distances(records, keypoints), np.stack([record.visible for record in records]))
