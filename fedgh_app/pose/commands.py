"""What `fedgh predict`, `export`, `evaluate`, `score` and `data` do for a pose model and its data, and their options.

It is loaded with the command line, so that what takes torch is imported by the functions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option

from fedgh_app.resources import Values

if TYPE_CHECKING:
    from fedgh_app.pose.data.augmentation import Augmentation
    from fedgh_app.pose.data.check import CheckReport
    from fedgh_app.pose.data.records import OnBad
    from fedgh_app.pose.evaluation.official_run import Evaluation
    from fedgh_app.pose.official import Score, Side
    from fedgh_app.pose.prediction.export import Agreement
    from fedgh_app.pose.prediction.prediction import Counts
    from fedgh_app.task import Trained

Progress = Callable[[int, int], None]  # called with how much is done, and how much there is
Decoding = Annotated[str | None, Option(help="How heatmaps are read. \\[default: as in the run]")]


def predict(
    run: "Trained",
    inputs: Annotated[list[Path], Argument(help="Images, videos, and folders that hold them.")],
    out: Annotated[Path, Option(help="New folder for pictures with skeletons and predictions.json.")],
    boxes: Annotated[Path | None, Option(help="COCO detections or annotations: where people are.")] = None,
    box: Annotated[list[str] | None, Option(help="x,y,width,height in a single input; may repeat.")] = None,
    min_box_score: Annotated[float, Option(help="Leave out detected boxes below this score.")] = 0.0,
    min_score: Annotated[float, Option(help="Draw only keypoints this sure, 0 to 1; all are written.")] = 0.0,
    decoding: Decoding = None,
    flip_test: Annotated[bool | None, Option(help="Look at mirrored crops too. \\[default: as in the run]")] = None,
    batch_size: Annotated[int, Option(help="Most crops in one pass of the model.", min=1)] = 32,
    *,
    model: str,
    progress: Progress,
) -> "Counts":
    """Find the keypoints of people in images and videos: fedgh predict RUN photo.jpg clip.mp4 --out DIR.

    ``out`` is there whole, or not at all; ``model`` is what the written predictions call the model. UserError where an
    input, a box or an option is not as expected, or ``out`` holds something.
    """
    from fedgh_app.pose.prediction.prediction import (
        asked_boxes,
        check_output,
        find_sources,
        predict_all,
        predictor_of,
    )

    check_output(out)
    sources = find_sources(inputs)
    given = asked_boxes(sources, boxes, box or [], min_box_score)
    found = predictor_of(run, decoding=decoding, flip_test=flip_test, batch_size=batch_size)
    info = {"made_by": "fedgh predict", "model": model, "boxes": None if boxes is None else str(boxes)}
    return predict_all(found, sources, out, boxes=given, min_score=min_score, info=info, progress=progress)


def export(run: "Trained", path: Path, decoding: Decoding = None) -> "Agreement":
    """Write a run's model as ONNX: images in, keypoints and maps out; checked against PyTorch."""
    from fedgh_app.pose.prediction import export

    return export.export(run, path, decoding=decoding)


def evaluate(
    run: "Trained",
    values: Values,
    split: Annotated[str, Option(help="Who is scored: test, train (the data set's fixed split) or all.")] = "test",
    detections: Annotated[Path | None, Option(help="COCO detections to look in, not the annotated boxes.")] = None,
    oks_nms: Annotated[
        float | None,
        Option(help="With detections: the OKS beyond which the worse of two goes. \\[default: as Simple Baselines]"),
    ] = None,
    out: Annotated[Path | None, Option(help="New folder for predictions, numbers and pictures of errors.")] = None,
    *,
    progress: Progress | None = None,
) -> "Evaluation":
    """Score a run's model by a data set's official metric: fedgh evaluate RUN \\[dataset=lspet] [--out DIR]."""
    from fedgh_app.pose.evaluation.official_run import evaluate_run

    side = cast("Side", split)  # which is checked there
    return evaluate_run(run, values, side=side, detections=detections, oks_nms=oks_nms, out=out, progress=progress)


def score(
    dataset: Annotated[str, Argument(help="mpii, coco, lsp, lspet, arm, lspet_arm or a data set of your own.")],
    truth: Annotated[Path, Option(help="The data set's annotation file; of MPII also a .mat with pos_gt_src.")],
    predictions: Annotated[Path, Option(help="COCO keypoint results; of MPII also .mat, .h5, .npz; see the README.")],
    split: Annotated[str, Option(help="Who is scored: all, train or test (the data set's fixed split).")] = "all",
    on_bad: Annotated[str, Option(help="raise, or skip: bad annotations, and people not predicted.")] = "raise",
) -> "Score":
    """Score predictions by a data set's official metric."""
    from fedgh_app.pose import official

    return official.score(dataset, truth, predictions, side=cast("Side", split), on_bad=cast("OnBad", on_bad))


def check(
    dataset: Values,
    root: Path | None,
    augmentation: "Augmentation | None",
    *,
    out: Path,
    count: int,
    progress: Progress,
) -> "CheckReport":
    """Count the data set of this ``dataset`` group, and draw some of it, as training under ``augmentation`` sees it.

    See `fedgh_app.pose.data.check.check`; a ``root`` of None is the group's own.
    """
    from fedgh_app.pose.data.check import check as check_data
    from fedgh_app.pose.data.records import load_spec

    seen = None if augmentation is None else (augmentation, tuple(dataset["input_size"]))
    root = Path(dataset["root"]) if root is None else root
    return check_data(load_spec(dataset["spec"]), root, out=out, count=count, seen=seen, progress=progress)


def arm(
    root: Annotated[Path | None, Option(help="Where to write it. \\[default: $FEDGH_HOME/data/arm]")] = None,
    count: Annotated[int, Option(help="Images.")] = 2060,
    seed: Annotated[int, Option(help="Seed of everything random in it.")] = 0,
    *,
    home: Path,
    progress: Progress,
) -> str:
    """Generate arms under a robot manipulator: four viewpoints, two postures, COCO-keypoint JSON."""
    from fedgh_app.pose.arms.generated import generate

    written = generate(root or home / "arm", count=count, seed=seed, progress=progress)
    return f"{count} images in {written}"


def lspet_arm(
    source: Annotated[Path, Option(help="Leeds Sports Pose Extended: joints.mat and images/.")],
    root: Annotated[Path | None, Option(help="Where to write. \\[default: $FEDGH_HOME/data/lspet_arm]")] = None,
    *,
    home: Path,
    progress: Progress,
) -> str:
    """Cut single arms out of LSPET, each with the direction in which it points."""
    from fedgh_app.pose.arms.lspet import cut

    written = cut(source, root or home / "lspet_arm", progress=progress)
    return f"arms in {written}"


MAKES = {"drawing arms": arm, "cutting arms": lspet_arm}  # data sets of `fedgh data`, by what is done meanwhile
