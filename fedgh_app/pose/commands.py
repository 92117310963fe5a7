"""What `fedgh predict`, `export`, `evaluate`, `score` and `data check` do for a pose model and its data."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fedgh_app.pose.data.augmentation import Augmentation
from fedgh_app.pose.data.check import CheckReport
from fedgh_app.pose.data.check import check as check_data
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.evaluation.official_run import evaluate_run as evaluate
from fedgh_app.pose.official import score
from fedgh_app.pose.prediction.export import export
from fedgh_app.pose.prediction.prediction import (
    Counts,
    asked_boxes,
    check_output,
    find_sources,
    predict_all,
    predictor_of,
)
from fedgh_app.task import Trained, Values

__all__ = ["check", "evaluate", "export", "predict", "score"]


def predict(
    run: Trained,
    inputs: Sequence[Path],
    out: Path,
    *,
    model: str,
    boxes: Path | None = None,
    box: Sequence[str] = (),
    min_box_score: float = 0.0,
    min_score: float = 0.0,
    decoding: str | None = None,
    flip_test: bool | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None],
) -> Counts:
    """Find the keypoints of people in images and videos, and write them with pictures into ``out``.

    Args:
        run: whose model.
        inputs: images, videos, and folders that hold them.
        out: a new or empty folder; there whole, or not at all.
        model: what the written predictions call the model.
        boxes: COCO detections or annotations: where people are.
        box: ``x,y,width,height`` of people in a single input.
        min_box_score: detected boxes below this score are left out.
        min_score: keypoints below this score are written, but not drawn.
        decoding, flip_test: otherwise than in the run.
        batch_size: most crops in one pass of the model.
        progress: called with how much is done and how much there is.

    Raises:
        UserError: an input, a box or an option is not as expected, or ``out`` holds something.
    """
    check_output(out)
    sources = find_sources(inputs)
    given = asked_boxes(sources, boxes, box, min_box_score)
    found = predictor_of(run, decoding=decoding, flip_test=flip_test, batch_size=batch_size)
    info = {"made_by": "fedgh predict", "model": model, "boxes": None if boxes is None else str(boxes)}
    return predict_all(found, sources, out, boxes=given, min_score=min_score, info=info, progress=progress)


def check(
    dataset: Values,
    root: Path | None,
    augmentation: Augmentation | None,
    *,
    out: Path,
    count: int,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Count the data set of this ``dataset`` group, and draw some of it, as training under ``augmentation`` sees it.

    See `fedgh_app.pose.data.check.check`; a ``root`` of None is the group's own.
    """
    seen = None if augmentation is None else (augmentation, tuple(dataset["input_size"]))
    root = Path(dataset["root"]) if root is None else root
    return check_data(load_spec(dataset["spec"]), root, out=out, count=count, seen=seen, progress=progress)
