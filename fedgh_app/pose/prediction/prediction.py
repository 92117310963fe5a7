"""Keypoints of people in any images and videos: drawn on them, and written as COCO JSON."""

import functools
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from fedgh_app.errors import UserError
from fedgh_app.pose.data import crops as cropping
from fedgh_app.pose.data.batches import normalised
from fedgh_app.pose.data.cache import network_input
from fedgh_app.pose.data.records import DatasetSpec
from fedgh_app.pose.models.decoding import Confidence, Decode, confidence_of, decoder
from fedgh_app.pose.prediction.boxes import Box, Boxes, parse_box, read_boxes
from fedgh_app.pose.prediction.drawing import draw_people
from fedgh_app.pose.prediction.videos import CODEC_NAME, Video, frames_of, open_video, writing
from fedgh_app.pose.training import Permutation, find_keypoints
from fedgh_app.task import Trained
from fedgh_app.vision.files import staged
from fedgh_app.vision.images import read_image, write_image
from fedgh_app.vision.training import place
from fedgh_app.words import count

PREDICTIONS = "predictions.json"
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
VIDEO_SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"))
# Frames that wait until a batch is full hold no more than about this much memory.
HELD_BYTES = 2**28
# Decimals of a written pixel, and of a score.
PIXEL_DIGITS, SCORE_DIGITS = 3, 4


@dataclass(frozen=True)
class Source:
    """An image file, or a `video`."""

    path: Path
    video: Video | None = None

    @property
    def picture(self) -> str:
        """Name of the file with skeletons on it: the image's own, or an mp4."""
        return self.path.name if self.video is None else f"{self.path.stem}.mp4"


@dataclass(frozen=True, eq=False)
class Frame:
    """An image (H, W, 3) uint8 RGB with the boxes to look at; `number`, from 0, is a video frame's."""

    source: Source
    number: int | None
    image: np.ndarray
    boxes: Sequence[Box]


@dataclass(frozen=True, eq=False)
class Person:
    """Keypoints (J, 2) in pixels of the whole image, centres at integers, and their confidences (J,)."""

    box: Box
    keypoints: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Counts:
    """What was predicted."""

    images: int
    videos: int
    frames: int
    people: int

    def __str__(self) -> str:
        people = f"{self.people} {'person' if self.people == 1 else 'people'}"
        places = [count(self.images, "image")] * bool(self.images)
        if self.videos:
            places.append(f"{self.frames - self.images} frames of {count(self.videos, 'video')}")
        return f"{people} in {' and '.join(places)}" + (f", written as {CODEC_NAME}" if self.videos else "")


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model, images (B, 3, h, w) to maps (B, J, h', w') of the J keypoints of `spec`, and how its maps are read.

    `input_size` is the (h, w) that it was trained on, `batch_size` the most crops in one pass. With `flip_permutation`
    there is a flip test, see `training.find_keypoints`; the confidence is that of the image as it is.
    """

    model: nn.Module
    spec: DatasetSpec
    input_size: tuple[int, int]
    decode: Decode
    confidence: Confidence
    device: torch.device
    batch_size: int = 32
    flip_permutation: Permutation | None = None

    def __call__(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, list[Person]]]:
        """Each frame with a person for each of its boxes; crops of neighbouring frames share a pass."""
        place(self.model, self.device)
        held: list[Frame] = []
        waiting, size = 0, 0
        for frame in frames:
            held.append(frame)
            waiting, size = waiting + len(frame.boxes), size + frame.image.nbytes
            if waiting >= self.batch_size or size >= HELD_BYTES:
                yield from self._people(held)
                held, waiting, size = [], 0, 0
        yield from self._people(held)

    def _people(self, frames: Sequence[Frame]) -> Iterator[tuple[Frame, list[Person]]]:
        pairs = [network_input(frame.image, box.sides, self.input_size) for frame in frames for box in frame.boxes]
        found: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
        if pairs:
            crops, matrices = (np.stack(part) for part in zip(*pairs, strict=True))
            points, scores = self.keypoints(crops)
            found = zip(cropping.apply_affine(points, cropping.invert_affine(matrices)), scores, strict=True)
        for frame in frames:
            yield frame, [Person(box, *next(found)) for box in frame.boxes]

    def keypoints(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (B, J, 2) in input pixels and confidences (B, J) of crops (B, h, w, 3) uint8 RGB."""
        points, scores = [], []
        for start in range(0, len(crops), self.batch_size):
            images = normalised(crops[start : start + self.batch_size])
            found = find_keypoints(
                self.model, images, self.decode, device=self.device, flip_permutation=self.flip_permutation
            )
            points.append(found.coordinates.cpu().numpy())
            scores.append(self.confidence(found.maps).cpu().numpy())
        return np.concatenate(points), np.concatenate(scores)


def predictor_of(
    run: Trained, *, decoding: str | None = None, flip_test: bool | None = None, batch_size: int = 32
) -> Predictor:
    """A run's model, on a GPU if there is one; ``decoding`` and ``flip_test`` as in the run where they are None."""
    usual, spec = run.values["evaluate"], cast(DatasetSpec, run.spec)
    height, width = run.dataset["input_size"]
    flips = usual["flip_test"] if flip_test is None else flip_test
    return Predictor(
        model=run.model,
        spec=spec,
        input_size=(int(height), int(width)),
        decode=decoder(run.model, decoding or usual["decoding"], run.loss),
        confidence=confidence_of(run.model, run.loss),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        batch_size=batch_size,
        flip_permutation=spec.flip_permutation if flips else None,
    )


def find_sources(inputs: Iterable[Path]) -> list[Source]:
    """The images and videos among `inputs`; a folder stands for those directly in it, in the order of names.

    Raises UserError where there is none, where a video cannot be opened, and where two would be written as one file.
    """
    found: dict[str, Source] = {}
    for path in dict.fromkeys(path for given in inputs for path in _files(given)):
        source = Source(path, open_video(path) if path.suffix.lower() in VIDEO_SUFFIXES else None)
        key = source.picture.casefold()  # some file systems take no notice of case
        if key in found and not path.samefile(found[key].path):
            raise UserError(
                f"{found[key].path} and {path} would both be written as {source.picture}; expected different names"
            )
        found[key] = source
    return list(found.values())


def asked_boxes(
    sources: Sequence[Source], file: Path | None, texts: Sequence[str], min_score: float = 0.0
) -> Boxes | None:
    """The boxes of a COCO file, but those with a score below `min_score`; or those of the only source as texts
    `x,y,width,height`; None where none are given."""
    if not texts:
        return None if file is None else read_boxes(file, {source.path.name for source in sources}, min_score)
    if file is not None or len(sources) != 1:
        with_what = "--boxes" if file is not None else f"{len(sources)} inputs"
        raise UserError(f"--box {texts[0]}: found together with {with_what}, expected a single image or video")
    return Boxes({(sources[0].path.name, None): [parse_box(text) for text in texts]})


def predict_all(
    predictor: Predictor,
    sources: Sequence[Source],
    out: Path,
    *,
    boxes: Boxes | None = None,
    min_score: float = 0.0,
    info: Mapping[str, object] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Counts:
    """Predict every image and video frame and make the folder `out`: pictures with skeletons, `predictions.json`.

    Args:
        predictor, sources: the model, and what it looks at.
        out: a new or empty folder; it appears once all is done, or not at all.
        boxes: where people are; None takes each whole image as one person's box.
        min_score: keypoints with less confidence are not drawn; all of them are written.
        info: what the JSON says of itself.
        progress: called with the number of images and frames done, and in all.

    Raises:
        UserError: an input that cannot be read to its end, a box outside its image, an `out` that cannot be written.
    """
    total = sum(source.video.frames if source.video else 1 for source in sources)
    videos = [{"file_name": s.path.name, "written": s.picture, "frame_rate": s.video.rate} for s in sources if s.video]
    frames = people = 0
    with output_folder(out) as folder, _results(folder, predictor.spec, {**(info or {}), "videos": videos}) as add:
        predicted = predictor(_frames(sources, boxes))
        for source, group in itertools.groupby(predicted, key=lambda pair: pair[0].source):
            with _pictures(folder, source) as show:
                for frame, found in group:
                    add(frame, found)
                    poses = [(person.keypoints, person.scores, person.box.sides) for person in found]
                    show(draw_people(frame.image[..., ::-1], poses, predictor.spec, min_score=min_score))
                    frames, people = frames + 1, people + len(found)
                    progress(frames, max(frames, total))
    return Counts(images=len(sources) - len(videos), videos=len(videos), frames=frames, people=people)


def check_output(out: Path) -> None:
    """Refuse an output folder that holds anything."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; expected a new or empty folder")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out}: holds files already; expected a new or empty folder")


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """What becomes the new or empty folder ``out`` when the block ends well; UserError where it cannot be written."""
    check_output(out)
    try:
        with staged(out) as folder:
            try:
                yield folder
            except UserError as error:  # of a file in it, which is told by where it would lie in the end
                raise UserError(str(error).replace(str(folder), str(out))) from error
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error


def _files(given: Path) -> list[Path]:
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    listed = ", ".join(sorted(known))
    if given.is_dir():
        found = sorted(
            path
            for path in given.iterdir()
            if path.suffix.lower() in known and path.is_file() and not path.name.startswith(".")
        )
        if not found:
            raise UserError(f"{given}: no image or video in this folder; expected {listed}")
        return found
    if not given.exists():
        raise UserError(f"{given}: no such file or folder")
    if given.suffix.lower() not in known:
        raise UserError(f"{given}: neither an image nor a video by its name; expected {listed}")
    return [given]


def _frames(sources: Iterable[Source], boxes: Boxes | None) -> Iterator[Frame]:
    """Every image and every frame of every video, with its boxes; without boxes each is a box itself."""
    for source in sources:
        images: Iterable[tuple[int | None, np.ndarray]] = (
            [(None, read_image(source.path))] if source.video is None else enumerate(frames_of(source.video))
        )
        for number, image in images:
            height, width = image.shape[:2]
            whole = [Box(np.array([0, 0, width, height], np.float32))]
            found = whole if boxes is None else boxes[source.path.name, number]
            for box in found:
                box.check(str(source.path) if number is None else f"{source.path}, frame {number}", width, height)
            yield Frame(source, number, image, found)


@contextmanager
def _pictures(folder: Path, source: Source) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes one image, or appends to the video, (H, W, 3) uint8 BGR."""
    path = folder / source.picture
    if source.video is None:
        yield functools.partial(write_image, path)
    else:
        with writing(path, source.video.rate) as write:
            yield write


@contextmanager
def _results(
    folder: Path, spec: DatasetSpec, info: Mapping[str, object]
) -> Iterator[Callable[[Frame, Sequence[Person]], None]]:
    """A function that adds a frame's people to `predictions.json`, of which no more than that is held in memory."""
    category = {
        "id": 1,
        "name": "person",
        "keypoints": list(spec.keypoints),
        "skeleton": [[a + 1, b + 1] for a, b in spec.skeleton],  # COCO counts from 1 here
    }
    images = people = 0
    with (folder / PREDICTIONS).open("w") as file, tempfile.TemporaryFile("w+", dir=folder) as annotations:
        file.write(f'{{"info": {json.dumps(dict(info))},\n"categories": {json.dumps([category])},\n"images": [')

        def add(frame: Frame, found: Sequence[Person]) -> None:
            nonlocal images, people
            height, width = frame.image.shape[:2]
            image = {"id": images + 1, "file_name": frame.source.path.name, "width": width, "height": height}
            if frame.number is not None:
                image["frame"] = frame.number
            file.write(("," if images else "") + "\n" + json.dumps(image))
            images += 1
            for person in found:
                entry = {"id": people + 1, "image_id": images, "category_id": 1, **_annotation(person)}
                annotations.write(("," if people else "") + "\n" + json.dumps(entry))
                people += 1

        yield add
        file.write('\n],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write("\n]}\n")


def _annotation(person: Person) -> dict[str, object]:
    """A person in COCO's format of results: x, y, score of each keypoint in turn."""
    points = np.round(np.asarray(person.keypoints, np.float64), PIXEL_DIGITS)
    scores = np.round(np.asarray(person.scores, np.float64), SCORE_DIGITS)
    mean = float(np.mean(person.scores)) * (1.0 if person.box.score is None else person.box.score)
    return {
        "bbox": [round(float(side), PIXEL_DIGITS) for side in person.box.sides],
        "keypoints": np.column_stack([points, scores]).reshape(-1).tolist(),
        "score": round(mean, SCORE_DIGITS),
    }
