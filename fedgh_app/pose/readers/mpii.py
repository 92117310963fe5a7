"""MPII Human Pose (Andriluka et al., CVPR 2014): Simple Baselines' JSON and the official MATLAB file."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec
from fedgh_app.pose.readers.intake import BadEntry, Entries, RawPose, numbers, read_json, read_mat

# `scale` is the person's height over 200 px. `center` lies in the person's upper part; moved down by 15 px per unit of
# scale, a square of that height around it holds the legs too (Simple Baselines, lib/dataset/mpii.py).
PERSON_HEIGHT = 200.0
CENTRE_SHIFT = 15.0
OFFICIAL_FILE = "mpii_human_pose_v1_u12_1.mat"


def person_box(centre: np.ndarray, scale: float) -> np.ndarray:
    """Square x, y, width, height in 0-based pixels from a 1-based `centre` and a `scale`."""
    if not scale > 0:
        raise BadEntry(f"scale {scale}, expected more than 0")
    side = PERSON_HEIGHT * scale
    middle = centre + np.array([0.0, CENTRE_SHIFT * scale]) - 1
    return np.array([middle[0] - side / 2, middle[1] - side / 2, side, side])


def read_simple(spec: DatasetSpec, path: Path) -> Entries:
    """People of a Simple Baselines JSON list; MATLAB's 1-based pixels become 0-based."""
    data = read_json(path)
    if not isinstance(data, list):
        raise UserError(f"{path}: expected a list of people, found a {type(data).__name__}")
    people: dict[str, int] = {}
    for position, entry in enumerate(data):
        name = entry.get("image") if isinstance(entry, dict) else None
        rank = people[str(name)] = people.get(str(name), -1) + 1
        yield f"person {position}", partial(_simple, entry, f"{name}#{rank}", spec.num_keypoints)


def _simple(entry: object, name: str, count: int) -> RawPose:
    if not isinstance(entry, dict):
        raise BadEntry("expected an object")
    scale = float(numbers(entry.get("scale"), (), "scale"))
    return RawPose(
        id=name,
        file_name=entry.get("image"),
        keypoints=numbers(entry.get("joints"), (count, 2), "joints") - 1,
        visible=numbers(entry.get("joints_vis"), (count,), "joints_vis") > 0,
        box=person_box(numbers(entry.get("center"), (2,), "center"), scale),
        image_id=str(entry.get("image")),
    )


def read_official(spec: DatasetSpec, path: Path) -> Entries:
    """People of `mpii_human_pose_v1_u12_1.mat`.

    RELEASE.annolist(i) has image.name, vididx and annorect, one element a person; many people lack annopoints (the test
    images, and people who were only boxed): they are passed over, being no poses. A joint's place is given whether or
    not it `is_visible`, and counts, as in MPII's own evaluation. Frames of one video stay together.
    """
    release = read_mat(path, struct_as_record=False, squeeze_me=True).get("RELEASE")
    images = _elements(_field(release, "annolist"))
    if not images:
        raise UserError(f"{path}: RELEASE.annolist is missing, expected the official MPII annotation structure")
    train = _elements(_field(release, "img_train"))
    single = _cells(_field(release, "single_person"), len(images))
    acts = _elements(_field(release, "act"))
    for position, image in enumerate(images):
        act = _field(acts[position], "cat_name") if len(acts) == len(images) else None
        # img_train = 0 is the official test set, whose joints were never published.
        split = "test" if len(train) == len(images) and np.array_equal(train[position], 0) else None
        for rank, person in enumerate(_elements(_field(image, "annorect"))):
            points = _elements(_field(_field(person, "annopoints"), "point"))
            attributes = {} if act is None else {"category": str(act)}
            if single is not None:
                attributes["single_person"] = "yes" if rank + 1 in single[position] else "no"
            if points:
                read = partial(_official, image, rank, person, points, spec.num_keypoints, split, attributes)
                yield f"annolist({position + 1}).annorect({rank + 1})", read


def _official(
    image: object,
    rank: int,
    person: object,
    points: list[object],
    count: int,
    split: str | None,
    attributes: dict[str, str],
) -> RawPose:
    name, video = _field(_field(image, "image"), "name"), _field(image, "vididx")
    keypoints, visible = _joints(points, count)
    head = [_field(person, key) for key in ("x1", "y1", "x2", "y2")]
    return RawPose(
        id=f"{name}#{rank}",
        file_name=None if name is None else str(name),
        keypoints=keypoints - 1,
        visible=visible,
        box=_person_box(person),
        head=None if any(corner is None for corner in head) else numbers(head, (4,), "head box"),
        group=None if video is None else f"video {video}",
        split=split,
        attributes=attributes,
        image_id=str(name),
    )


def _person_box(person: object) -> np.ndarray:
    position, scale = _field(person, "objpos"), _field(person, "scale")
    if position is None or scale is None:
        raise BadEntry("objpos or scale is missing")
    centre = numbers([_field(position, "x"), _field(position, "y")], (2,), "objpos")
    return person_box(centre, float(numbers(scale, (), "scale")))


def _joints(points: list[object], count: int) -> tuple[np.ndarray, np.ndarray]:
    """1-based keypoints (J, 2) and which of them are there (J,); `id` counts from 0."""
    keypoints, visible = np.zeros((count, 2)), np.zeros(count, dtype=bool)
    for point in points:
        x, y, joint = numbers([_field(point, key) for key in ("x", "y", "id")], (3,), "point (x, y, id)")
        if joint not in range(count) or visible[int(joint)]:
            raise BadEntry(f"point id {joint:g}, expected 0 to {count - 1}, each once")
        keypoints[int(joint)], visible[int(joint)] = (x, y), True
    return keypoints, visible


def _field(struct: object, name: str) -> object:
    """A field of a MATLAB struct; None where the struct lacks it or it is empty."""
    value = getattr(struct, name, None) if name in getattr(struct, "_fieldnames", ()) else None
    return None if isinstance(value, np.ndarray) and value.size == 0 else value


def _elements(value: object) -> list[Any]:
    """A struct or number array as a list: `squeeze_me` makes a single element a bare value."""
    if value is None:
        return []
    return list(value.ravel()) if isinstance(value, np.ndarray) else [value]


def _cells(value: object, count: int) -> list[set[float]] | None:
    """RELEASE.single_person: for each image the 1-based numbers of the people who stand apart."""
    cells = [value] if count == 1 else _elements(value)
    if value is None or len(cells) != count:
        return None
    numbered = [cell.ravel().tolist() if isinstance(cell, np.ndarray) else [cell] for cell in cells]
    return [{person for person in cell if isinstance(person, (int, float))} for cell in numbered]
