"""Where people are in images: boxes out of COCO detections or annotations, by the names of the image files."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.data.cache import is_outside
from fedgh_app.pose.readers.intake import BadEntry, numbers, read_json

PERSON = 1  # COCO's category; counts where a file has several
# A file's name and, where a box is of one frame of a video alone, the frame.
Place = tuple[str, int | None]
# A box this many times as long as its image is a slip of units, and cutting it out would take all memory.
LONGEST = 20


@dataclass(frozen=True, eq=False)
class Box:
    """x, y, width, height (4,) float32 in image pixels, and the detector's `score` where it gave one."""

    sides: np.ndarray
    score: float | None = None

    def __str__(self) -> str:
        return ",".join(f"{side:g}" for side in self.sides)

    def check(self, where: str, width: int, height: int) -> None:
        """Raise a UserError that names `where` if the box has nothing of an image of that size in it."""
        if is_outside(self.sides, width, height) or self.sides[2:].max() > LONGEST * max(width, height):
            raise UserError(f"{where}: box {self} does not lie in the {width}x{height} image")


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes by file name and, in videos, by frame; what stands under no frame (None) counts for every frame."""

    of: Mapping[Place, Sequence[Box]]

    def __getitem__(self, place: Place) -> Sequence[Box]:
        """The boxes in a file, or in one of its frames; none where nobody was found."""
        return self.of.get(place, self.of.get((place[0], None), ()))


def parse_box(text: str) -> Box:
    """The box in a text `x,y,width,height`."""
    try:
        x, y, width, height = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--box {text}: expected four numbers x,y,width,height in pixels") from None
    return box_of([x, y, width, height], f"--box {text}")


def read_boxes(path: Path, names: Collection[str], min_score: float = 0.0) -> Boxes:
    """The boxes that a COCO file has for the images called `names`.

    The file is an object with `images` and `annotations`, such as COCO's own or our predictions (whose images may have
    a `frame`), or a list of detections, each with `bbox` and either `file_name` or the `image_id` that is the image's
    name: 139 for 000000000139.jpg. Directories of a file name are not looked at. Crowds are passed over, boxes whose
    score is below `min_score`, and in a file of several categories all but people, also in an image that has no others.

    Raises UserError where it is none of these, a box is no box, or none of the images has one.
    """
    content = read_json(path)
    if isinstance(content, dict):
        for key in ("images", "annotations"):
            if not isinstance(content.get(key), list):
                raise UserError(f"{path}: {key}: expected a list, as in COCO's annotations")
        places, entries = _places(path, content["images"], names), content["annotations"]
    elif isinstance(content, list):
        places, entries = None, content
    else:
        raise UserError(f"{path}: expected COCO annotations or a list of detections, found {type(content).__name__}")
    by_id = _by_id(names)
    kept: list[tuple[Place, object, Box]] = []
    categories = set()
    for number, entry in enumerate(entries):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict):
            raise UserError(f"{where}: expected an object with a bbox, found {type(entry).__name__}")
        for key in ("image_id", "category_id"):
            if isinstance(entry.get(key), list | dict):
                raise UserError(f"{where}: {key} {str(entry[key])[:60]}, expected a number or a name")
        categories.add(entry.get("category_id"))
        if entry.get("iscrowd") == 1:
            continue
        place = places.get(entry.get("image_id")) if places is not None else _named(entry, names, by_id)
        if place is not None:
            box = box_of(entry.get("bbox"), where, entry.get("score"))
            if box.score is None or box.score >= min_score:
                kept.append((place, entry.get("category_id"), box))
    several = len(categories) > 1
    found: dict[Place, list[Box]] = {}
    for place, category, box in kept:
        if not several or category == PERSON:
            found.setdefault(place, []).append(box)
    if not found:
        sure = f" with a score of at least {min_score:g}" if min_score > 0 else ""
        person = f" of a person (category_id {PERSON})" if several else ""
        raise UserError(f"{path}: has no box{person}{sure} for any of the {len(names)} inputs, such as {min(names)}")
    return Boxes(found)


def _places(path: Path, images: Sequence[object], names: Collection[str]) -> dict[object, Place]:
    """Which input each image id stands for; images that are no inputs are left out."""
    places: dict[object, Place] = {}
    told: dict[Place, str] = {}
    for number, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            raise UserError(f"{path}: image {number}: expected an object with an id and a file_name")
        full, frame = str(image.get("file_name")), image.get("frame")
        place = (Path(full).name, frame if isinstance(frame, int) else None)
        if place[0] not in names:
            continue
        if place in told:
            raise UserError(f"{path}: {told[place]} and {full} have the same name; expected one {place[0]}")
        told[place] = full
        places[image["id"]] = place
    return places


def _by_id(names: Collection[str]) -> dict[int | str, str]:
    """Inputs by what detections may call them: the name without its suffix, and the number that this is."""
    stems = {name: Path(name).stem for name in names}
    pairs: list[tuple[int | str, str]] = [(stem, name) for name, stem in stems.items()]
    pairs += [(int(stem), name) for name, stem in stems.items() if stem.isdecimal()]
    often = Counter(id for id, _ in pairs)
    return {id: name for id, name in pairs if often[id] == 1}


def _named(entry: dict[str, object], names: Collection[str], by_id: Mapping[int | str, str]) -> Place | None:
    """The input that a detection names itself."""
    if "file_name" in entry:
        name = Path(str(entry["file_name"])).name
    else:
        name = by_id.get(image, "") if isinstance(image := entry.get("image_id"), int | str) else ""
    return (name, None) if name in names else None


def box_of(value: object, where: str, score: object = None) -> Box:
    """x, y, width, height and a detector's score as a box; a UserError that names `where` if they are none."""
    try:
        sides = numbers(value, (4,), "bbox").astype(np.float32)
        sure = None if score is None else float(numbers(score, (), "score"))
    except BadEntry as error:
        raise UserError(f"{where}: {error}") from None
    if not np.isfinite(sides).all() or sides[2:].min() <= 0:
        raise UserError(f"{where}: box {sides.tolist()}, expected x, y, width, height, the last two above 0")
    if sure is not None and not np.isfinite(sure):
        raise UserError(f"{where}: score {sure}, expected a finite number")
    return Box(sides, sure)
