"""What is done with a trained model: ``fedgh predict``, ``export`` and ``evaluate``; and ``score``, of predictions.

What each does for a model of some task is in that task's own module (`Task.commands`).
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedgh_app.cli.terminal import console, say, with_progress
from fedgh_app.errors import UserError

if TYPE_CHECKING:
    from fedgh_app.task import Trained


def predict(
    run: Annotated[Path, typer.Argument(help="A run directory, or one of several models in it.")],
    inputs: Annotated[list[Path], typer.Argument(help="Images, videos, and folders that hold them.")],
    out: Annotated[Path, typer.Option(help="New folder for pictures with skeletons and predictions.json.")],
    boxes: Annotated[Path | None, typer.Option(help="COCO detections or annotations: where people are.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="x,y,width,height in a single input; may repeat.")] = None,
    min_box_score: Annotated[float, typer.Option(help="Leave out detected boxes below this score.")] = 0.0,
    min_score: Annotated[float, typer.Option(help="Draw only keypoints this sure, 0 to 1; all are written.")] = 0.0,
    decoding: Annotated[str | None, typer.Option(help="How heatmaps are read. [default: as in the run]")] = None,
    flip_test: Annotated[bool | None, typer.Option(help="Look at mirrored crops too. [default: as in the run]")] = None,
    batch_size: Annotated[int, typer.Option(help="Most crops in one pass of the model.", min=1)] = 32,
) -> None:
    """Find the keypoints of people in images and videos: fedgh predict RUN photo.jpg clip.mp4 --out DIR."""
    opened, commands = _opened(run)
    counts = with_progress(
        "predicting",
        lambda told: commands.predict(
            opened,
            inputs,
            out,
            model=str(run),
            boxes=boxes,
            box=box or [],
            min_box_score=min_box_score,
            min_score=min_score,
            decoding=decoding,
            flip_test=flip_test,
            batch_size=batch_size,
            progress=told,
        ),
    )
    say(f"{counts} in {out}")


def export(
    run: Annotated[Path, typer.Argument(help="A run directory, or one of several models in it.")],
    form: Annotated[str, typer.Option("--format", help="onnx")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write. [default: beside the model, model.onnx]")] = None,
    decoding: Annotated[str | None, typer.Option(help="How heatmaps are read. [default: as in the run]")] = None,
) -> None:
    """Write a run's model as ONNX: images in, keypoints and maps out; checked against PyTorch."""
    if form != "onnx":
        raise UserError(f"--format {form}: no such format; expected onnx")
    path = out or (run / "model.onnx" if run.is_dir() else run.with_suffix(".onnx"))
    opened, commands = _opened(run)
    agreement = commands.export(opened, path, decoding=decoding)
    say(f"{agreement}\n{path}, {path.stat().st_size / 1e6:.1f} MB")


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory, or one of several models in it.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="dataset=… dataset.KEY=… evaluate.KEY=…")] = None,
    split: Annotated[
        str, typer.Option(help="Who is scored: test, train (the data set's fixed split) or all.")
    ] = "test",
    detections: Annotated[
        Path | None, typer.Option(help="COCO detections to look in, not the annotated boxes.")
    ] = None,
    oks_nms: Annotated[
        float | None,
        typer.Option(
            help="With detections: the OKS beyond which the worse of two goes. [default: as Simple Baselines]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder for predictions, numbers and pictures of errors.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a run's model by a data set's official metric: fedgh evaluate RUN [dataset=lspet] [--out DIR]."""
    from fedgh_app.config.evaluation import evaluated_on

    opened, commands = _opened(run)
    values = evaluated_on(opened.values, overrides or [])
    asked = {"side": split, "detections": detections, "oks_nms": oks_nms, "out": out}
    if as_json:
        print(json.dumps(commands.evaluate(opened, values, **asked).as_json(), indent=1))
        return
    found = with_progress("predicting", lambda told: commands.evaluate(opened, values, **asked, progress=told))
    console.print(found.score)
    if found.again is not None:
        console.print(f"in {out}; to score it again: {found.again}", soft_wrap=True, highlight=False, markup=False)


def score(
    dataset: Annotated[str, typer.Argument(help="mpii, coco, lsp, lspet, arm, lspet_arm or a data set of your own.")],
    truth: Annotated[Path, typer.Option(help="The data set's annotation file; of MPII also a .mat with pos_gt_src.")],
    predictions: Annotated[
        Path, typer.Option(help="COCO keypoint results; of MPII also .mat, .h5, .npz; see the README.")
    ],
    split: Annotated[str, typer.Option(help="Who is scored: all, train or test (the data set's fixed split).")] = "all",
    on_bad: Annotated[str, typer.Option(help="raise, or skip: bad annotations, and people not predicted.")] = "raise",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score predictions by a data set's official metric."""
    from fedgh_app.task import task_of

    commands: Any = importlib.import_module(task_of(dataset).commands)
    found = commands.score(dataset, truth, predictions, side=split, on_bad=on_bad)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        console.print(found)


def _opened(run: Path) -> tuple[Trained, Any]:
    """A run, and the module of what its task does with a model."""
    from fedgh_app.runs.opening import load_run

    opened = load_run(run)
    return opened, importlib.import_module(opened.task.commands)
