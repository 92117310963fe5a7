"""What is done with a trained model: ``fedgh predict``, ``export`` and ``evaluate``; and ``score``, of predictions.

What each does for a model of some task, and with what options, that task says itself (`fedgh_app.cli.task_options`).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedgh_app.cli.task_options import Options, function_of, of_tasks
from fedgh_app.cli.terminal import console, say, with_progress
from fedgh_app.errors import UserError
from fedgh_app.tasks import task_name

if TYPE_CHECKING:  # what is misspelt is told without waiting for torch
    from fedgh_app.task import Trained

Run = Annotated[Path, typer.Argument(help="A run directory, or one of several models in it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@of_tasks
def predict(run: Run, *, options: Options) -> None:
    """What a run's model finds in images."""
    opened, work = _opened(run, "predict", options)
    counts = with_progress("predicting", lambda told: work(opened, model=str(run), progress=told))
    say(f"{counts} in {options['out']}")


@of_tasks
def export(
    run: Run,
    form: Annotated[str, typer.Option("--format", help="onnx")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write. \\[default: beside the model, model.onnx]")] = None,
    *,
    options: Options,
) -> None:
    """A run's model in a format for elsewhere."""
    if form != "onnx":
        raise UserError(f"--format {form}: no such format; expected onnx")
    path = out or (run / "model.onnx" if run.is_dir() else run.with_suffix(".onnx"))
    opened, work = _opened(run, "export", options)
    agreement = work(opened, path)
    say(f"{agreement}\n{path}, {path.stat().st_size / 1e6:.1f} MB")


@of_tasks
def evaluate(
    run: Run,
    overrides: Annotated[list[str] | None, typer.Argument(help="dataset=… dataset.KEY=… evaluate.KEY=…")] = None,
    *,
    options: Options,
    as_json: AsJson = False,
) -> None:
    """A run's model by a data set's official metric."""
    from fedgh_app.config.evaluation import evaluated_on

    opened, work = _opened(run, "evaluate", options)
    values = evaluated_on(opened.values, overrides or [])
    if as_json:
        print(json.dumps(work(opened, values).as_json(), indent=1))
        return
    found = with_progress("predicting", lambda told: work(opened, values, progress=told))
    console.print(found.score)
    if found.again is not None:
        said = f"in {options['out']}; to score it again: {found.again}"
        console.print(said, soft_wrap=True, highlight=False, markup=False)


@of_tasks
def score(*, options: Options, as_json: AsJson = False) -> None:
    """Predictions by a data set's official metric."""
    found = function_of(task_name(options["dataset"]), "score", options)()
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        console.print(found)


def _opened(run: Path, command: str, options: Options) -> "tuple[Trained, Callable[..., Any]]":
    """A run, and what its task does with it at a command."""
    from fedgh_app.runs.opening import load_run

    opened = load_run(run)
    return opened, function_of(opened.task.name, command, options)
