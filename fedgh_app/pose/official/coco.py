"""OKS AP of COCO person keypoints, computed by COCO's own code, and the suppression of double predictions."""

import contextlib
import io
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec, OnBad
from fedgh_app.pose.data.split import split_groups
from fedgh_app.pose.official.results import Result, read_results
from fedgh_app.pose.official.scores import Score, Side
from fedgh_app.pose.prediction.boxes import PERSON
from fedgh_app.pose.readers.intake import BadEntry, image_path, numbers, read_json

# The order in which COCOeval.summarize gives them, and COCO's leaderboard shows them.
STATISTICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
RULE = "COCOeval: OKS 0.50:0.95, the 20 highest scores of an image; crowds and people without keypoints are ignored"
NUMBERS = {"keypoints": (-1,), "bbox": (4,), "area": (), "iscrowd": (), "num_keypoints": ()}


def score(spec: DatasetSpec, truth: Path, predictions: Path, *, side: Side = "all", on_bad: OnBad = "raise") -> Score:
    """Average precision and recall over object keypoint similarity (Lin et al., ECCV 2014; cocodataset.org).

    COCO says who is predicted by whom, so nobody has to be predicted, and people who are not cost recall.
    ``on_bad="skip"`` leaves out bad annotations of the truth and counts them. Predictions of images on the other side
    of the split are passed over.

    Raises:
        UserError: a file is not as expected, or a prediction is of an image that the truth does not have.
    """
    data, bad = _read_truth(spec, truth, on_bad)
    images = {image["id"] for image in data["images"]}
    asked = [image["id"] for image in _on_side(spec, truth, data["images"], side)]
    if not asked:
        raise UserError(f"{truth}: found no image in split {side}, expected at least one; see --split")
    results = read_results(predictions, spec)
    for place, result in enumerate(results):
        where = f"{predictions}: entry {place}"
        if result.image_id not in images:
            raise UserError(f"{where}: found image_id {result.image_id!r}, expected an image of {truth}")
        if result.category_id != PERSON:
            raise UserError(f"{where}: found category_id {result.category_id}, expected {PERSON} (person)")
    found, counted = _evaluate(data, results, asked), set(asked)
    annotated = [person for person in data["annotations"] if not person["iscrowd"] and person["num_keypoints"] > 0]
    people = sum(person["image_id"] in counted for person in annotated)
    rows = {"OKS": {name: 100 * value if value >= 0 else float("nan") for name, value in found.items()}}
    return Score("COCO keypoints, OKS", rows, people, RULE, bad)


def images_of(spec: DatasetSpec, truth: Path, root: Path, *, side: Side) -> dict[int | str, Path]:
    """The image files on one side of the split, below ``root``, by their ids; also those that show nobody."""
    data, _ = _read_truth(spec, truth, "skip")
    found = {}
    for image in _on_side(spec, truth, data["images"], side):
        try:
            found[image["id"]] = image_path(root, image.get("file_name"))
        except BadEntry as error:
            raise UserError(f"{truth}: image {image['id']}: {error}") from None
    return found


def suppress(results: Sequence[Result], areas: np.ndarray, threshold: float) -> list[int]:
    """OKS-NMS of one image's predictions: the places of those that stay, highest score first.

    As top-down codes do (Papandreou et al., CVPR 2017, section 3.3; Simple Baselines uses 0.9): a prediction goes
    where its OKS with a better one that stayed exceeds ``threshold``. ``areas`` (N,) are those of the people's boxes;
    a pair is measured by the mean of its two.
    """
    points = np.stack([result.keypoints for result in results])
    variances = (2 * Params(iouType="keypoints").kpt_oks_sigmas) ** 2
    order = list(np.argsort([-result.score for result in results], kind="stable"))
    stay: list[int] = []
    while order:
        best = int(order.pop(0))
        stay.append(best)
        squared = ((points[order] - points[best]) ** 2).sum(-1)
        area = (areas[order] + areas[best])[:, None] / 2
        similarity = np.exp(-squared / (2 * area * variances)).mean(-1)
        order = [other for other, value in zip(order, similarity, strict=True) if value <= threshold]
    return stay


def _evaluate(data: Mapping[str, Any], results: Sequence[Result], images: Sequence[int | str]) -> dict[str, float]:
    """COCOeval's statistics by name, -1 where nobody of that size is annotated."""
    entries = []
    for result in results:
        triples = np.concatenate([result.keypoints, result.confidences[:, None]], axis=1).ravel().tolist()
        ids = {"image_id": result.image_id, "category_id": result.category_id}
        entries.append({**ids, "keypoints": triples, "score": result.score})
    with contextlib.redirect_stdout(io.StringIO()):  # it talks, and takes no for no answer
        truth = COCO()
        truth.dataset = data
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(entries), "keypoints")
        evaluation.params.imgIds = sorted(images, key=str)
        evaluation.params.catIds = [PERSON]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATISTICS, map(float, evaluation.stats), strict=True))


def _read_truth(spec: DatasetSpec, path: Path, on_bad: OnBad) -> tuple[dict[str, Any], int]:
    """Images and people of an annotation file, as COCOeval needs them, and how many people were left out."""
    data = read_json(path)
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "annotations")):
        raise UserError(f"{path}: expected COCO annotations, an object with the lists images and annotations")
    for image in data["images"]:
        if not isinstance(image, dict) or type(image.get("id")) not in (int, str):
            raise UserError(f"{path}: images: found {str(image)[:60]}, expected objects with an id")
    _check_categories(spec, path, data.get("categories"))
    known = {image["id"] for image in data["images"]}
    people: list[dict[str, object]] = []
    bad = 0
    for place, entry in enumerate(data["annotations"]):
        if isinstance(entry, dict) and entry.get("category_id", PERSON) != PERSON:
            continue
        try:
            # Numbered anew: COCOeval takes somebody whose id is 0 for nobody.
            people.append({**_person(spec, entry, known), "id": len(people) + 1})
        except BadEntry as error:
            if on_bad == "raise":
                name = entry.get("id", place) if isinstance(entry, dict) else place
                raise UserError(f"{path}: annotation {name}: {error}") from None
            bad += 1
    categories = [{"id": PERSON, "name": "person"}]
    return {"images": data["images"], "annotations": people, "categories": categories}, bad


def _check_categories(spec: DatasetSpec, path: Path, categories: object) -> None:
    for category in categories if isinstance(categories, list) else ():
        if isinstance(category, dict) and category.get("id") == PERSON:
            names = category.get("keypoints", list(spec.keypoints))
            if names != list(spec.keypoints):
                found = str(names)[:80]
                raise UserError(f"{path}: categories: found keypoints {found}, expected COCO's 17 in its order")


def _person(spec: DatasetSpec, entry: object, images: Container[int | str]) -> dict[str, object]:
    if not isinstance(entry, dict):
        raise BadEntry("expected an object")
    for key, shape in NUMBERS.items():
        if key not in entry:
            raise BadEntry(f"found no {key!r}, which OKS needs")
        if not np.isfinite(numbers(entry[key], shape, key)).all():
            raise BadEntry(f"{key}: expected finite numbers")
    if type(entry.get("image_id")) not in (int, str) or entry["image_id"] not in images:
        raise BadEntry(f"image_id {entry.get('image_id')!r} is not among the images")
    if len(entry["keypoints"]) != 3 * spec.num_keypoints:
        raise BadEntry(f"keypoints: found {len(entry['keypoints'])} numbers, expected {3 * spec.num_keypoints}")
    return {**entry, "category_id": PERSON}


def _on_side(
    spec: DatasetSpec, truth: Path, images: Sequence[Mapping[str, Any]], side: Side
) -> list[Mapping[str, Any]]:
    """The images on the side of the split on which the reader puts the people in them."""
    if side == "all":
        return list(images)
    # The reader takes nobody from an image that states another split than these.
    known = [image for image in images if image.get("split") in (None, "train", "test")]
    members = []
    for image in known:
        group = str(image.get("file_name") if image.get("source") is None else image["source"])
        members.append((f"{truth}: image {image['id']}", group, image.get("split")))
    return [image for image, split in zip(known, split_groups(members, spec), strict=True) if split == side]
