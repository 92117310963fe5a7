"""A run's model scored by a data set's official protocol: the work of `fedgh evaluate`."""

import dataclasses
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedgh_app.errors import UserError, abbreviated
from fedgh_app.pose import official
from fedgh_app.pose.data.records import DatasetSpec, load_spec
from fedgh_app.pose.data.split import on_side
from fedgh_app.pose.evaluation.people import (
    Errors,
    Progress,
    detection_results,
    errors_of,
    nearest_errors,
    people_results,
    predict_detections,
    predict_people,
    read_detections,
)
from fedgh_app.pose.evaluation.pictures import draw_errors
from fedgh_app.pose.official import Score, Side
from fedgh_app.pose.official.coco import images_of
from fedgh_app.pose.official.results import Result, write_results
from fedgh_app.pose.prediction.prediction import check_output, output_folder, predictor_of
from fedgh_app.pose.readers import annotation_file, read_records
from fedgh_app.task import Trained, Values
from fedgh_app.vision.files import write_json

PREDICTIONS = "predictions.json"
# Of two predictions whose OKS is beyond this, the worse goes; Simple Baselines' value.
OKS_NMS = 0.9


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An official evaluation of a run."""

    score: Score
    about: dict[str, object]  # how it was made, for `as_json`
    again: str | None = None  # the command that scores the written predictions; None where nothing was written

    def as_json(self) -> dict[str, object]:
        """What ``evaluation.json`` holds."""
        return {**self.about, "title": self.score.title, "rule": self.score.rule, "scores": self.score.as_json()}


def evaluate_run(
    run: Trained,
    values: Values,
    *,
    side: Side = "test",
    detections: Path | None = None,
    oks_nms: float | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict the people of a data set by a run's model, and score the predictions.

    Args:
        values: the run's config, with those groups replaced that say on what and how: ``dataset``, ``evaluate``.
        side: which side of the data set's fixed split.
        detections: COCO detections to look in; None for the annotated boxes.
        oks_nms: with detections, the OKS beyond which the worse of two predictions goes; 1 keeps all, None: `OKS_NMS`.
        out: a new or empty folder for the predictions, the numbers and the pictures; there whole, or not at all.
        progress: called with the number of people (or, with detections, images) done and in all.

    Raises:
        UserError: other keypoints than the model's, no such data, nobody on that side of the split, detections for a
            protocol that does not match people.
    """
    official.check_side(side)
    run = dataclasses.replace(run, values=values)
    oks_nms = OKS_NMS if oks_nms is None else oks_nms
    if not 0 < oks_nms <= 1:
        raise UserError(f"--oks-nms {oks_nms}: expected a number above 0, at most 1")
    if out is not None:
        check_output(out)
    dataset = values["dataset"]
    spec = _spec(dataset, run)
    if detections is not None and spec.name != "coco":
        raise UserError(
            f"--detections {detections}: the protocol of {spec.name} does not match people with predictions, "
            "so that their own boxes are needed; expected dataset=coco"
        )
    root, on_bad = Path(dataset["root"]).expanduser().resolve(), dataset["on_bad"]
    truth = annotation_file(spec, root)[0]
    results, errors = _predicted(run, spec, root, side, detections, oks_nms, progress)
    about = _about(run, truth, side, detections, oks_nms)
    with tempfile.TemporaryDirectory() if out is None else output_folder(out) as named:
        folder = Path(named)
        write_results(folder / PREDICTIONS, results)
        score = official.protocol_of(spec)(spec, truth, folder / PREDICTIONS, side=side, on_bad=on_bad)
        if out is None:
            return Evaluation(score, about)
        again = ["fedgh", "score", spec.name, "--truth", str(truth), "--predictions", str(out / PREDICTIONS)]
        again += ["--split", side] * (side != "all") + ["--on-bad", "skip"] * (on_bad == "skip")
        evaluation = Evaluation(score, {**about, "predictions": PREDICTIONS}, shlex.join(again))
        write_json(folder / "evaluation.json", evaluation.as_json())
        if errors is not None:
            model = f" {run.file.stem}" * (run.file.stem != "model")  # where it is not the run's only one
            draw_errors(errors, spec, folder, f"{run.directory.resolve().name}{model} on {spec.name}, {side}")
        return evaluation


def _about(run: Trained, truth: Path, side: Side, detections: Path | None, oks_nms: float) -> dict[str, object]:
    """How an evaluation was made."""
    evaluate = run.values["evaluate"]
    return {
        "run": str(run.directory),
        "model": str(run.file.relative_to(run.directory)),
        "rounds": int(run.metadata.get("rounds", 0)),
        "dataset": run.values["dataset"]["spec"],
        "truth": str(truth),
        "split": side,
        "boxes": "annotated" if detections is None else str(detections),
        "decoding": "integral" if getattr(run.model, "integral", None) else evaluate["decoding"],
        "flip_test": bool(evaluate["flip_test"]),
        "person_score": "mean confidence of the keypoints" + (" x score of the detection" if detections else ""),
        "oks_nms": None if detections is None else oks_nms,
    }


def _spec(dataset: Values, run: Trained) -> DatasetSpec:
    """The data set to evaluate on, whose keypoints have to be the model's."""
    if "members" in dataset:
        names = " or ".join(dataset["members"])
        raise UserError(f"dataset={dataset['spec']}: it holds several data sets; expected one of them: {names}")
    spec = load_spec(dataset["spec"])
    if spec.keypoints != run.spec.predicts:
        raise UserError(
            f"dataset={spec.name}: its keypoints are {abbreviated(spec.keypoints)}, but the model of {run.directory} "
            f"finds those of {run.spec.name}, {abbreviated(run.spec.predicts)}; expected a data set with these"
        )
    return spec


def _predicted(
    run: Trained,
    spec: DatasetSpec,
    root: Path,
    side: Side,
    detections: Path | None,
    oks_nms: float,
    progress: Progress | None,
) -> tuple[list[Result], Errors | None]:
    """Predictions of the people on one side of the split, in their own boxes or in those detected, and their errors."""
    on_bad = run.values["dataset"]["on_bad"]
    records, _ = read_records(spec, root, on_bad=on_bad)
    asked = on_side(records, spec, side)
    truth = annotation_file(spec, root)[0]
    ready = predictor_of(run, batch_size=4 * run.values["batch_size"])
    if detections is not None:
        boxes = read_detections(detections, images_of(spec, truth, root, side="all"))
        images = images_of(spec, truth, root, side=side)
        if not any(name in boxes for name in images):
            raise UserError(f"{detections}: found no person in the {len(images)} images of split {side}; see --split")
        results = detection_results(predict_detections(ready, images, boxes, progress=progress), oks_nms)
        return results, nearest_errors(asked, results)
    if not asked:
        raise UserError(f"{truth}: found nobody in split {side} of {len(records)}, expected at least one; see --split")
    found = predict_people(ready, asked, skip_bad=on_bad == "skip", progress=progress)
    if not found:
        raise UserError(f"{root}: none of the images of {len(asked)} people can be used; see fedgh data check")
    return people_results(found), errors_of(found)
