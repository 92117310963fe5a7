"""The ``fedgh`` command."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import hydra
import typer
from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedgh_app.config.compose import CONF, compose_config, expand_sweep, fedgh_home, groups, quoted, run_name
from fedgh_app.errors import RunFailed, UserError
from fedgh_app.runs.directory import LOG
from fedgh_app.runtimes import deploy

if TYPE_CHECKING:
    from fedgh_app.pose.evaluation.official_run import Evaluation

app = typer.Typer(
    name="fedgh",
    help="Federated human-pose estimation on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Make, convert and check data sets.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(deploy.app, name="deploy")
console = Console()
T = TypeVar("T")

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def main() -> None:
    """Run the command; what a user got wrong is one line and status 2, a failed run one line and status 1."""
    # As Ctrl-C does, so that a run's processes are ended also when a scheduler stops it or its terminal is closed.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # text out of files may be what the terminal cannot show
    try:
        app()
    except UserError as error:
        _fail(error, 2)
    except RunFailed as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("stopped", 130)


def _fail(error: object, status: int) -> None:
    print(f"fedgh: {error}", file=sys.stderr)
    sys.exit(status)


@app.command(context_settings=PASS_ON)
def run(context: typer.Context) -> None:
    """Run a federation: fedgh run [OVERRIDES…] [-m]. `fedgh list` shows the choices; -m sweeps over commas;
    resume=RUN goes on with a run that was interrupted, -m resume=SWEEP with a sweep."""
    arguments = list(context.args)
    if "--help" in arguments or "-h" in arguments:
        console.print(context.get_help(), highlight=False)
        return
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if any(flag in arguments for flag in ("-m", "--multirun")):
        _run_sweep(overrides)
    else:
        _run_one(overrides, [argument for argument in arguments if argument.startswith("-")])


def _run_one(overrides: list[str], flags: list[str]) -> None:
    config = compose_config(overrides)
    if config.resume is not None:
        from fedgh_app.runs.resumption import resumed
        from fedgh_app.runs.sweep import SWEEP

        directory = Path(config.resume).expanduser().resolve()
        if (directory / SWEEP).exists():
            raise UserError(f"resume={directory}: holds a sweep; expected fedgh run -m to go on with it")
        overrides = resumed(directory, overrides)
        config = compose_config(overrides)
    directory = Path(config.run_dir or f"runs/{run_name(config)}")

    # Only now: what is misspelt is told without waiting for torch.
    from fedgh_app.runs.checkpoints import index_files
    from fedgh_app.runtimes.launcher import launch
    from fedgh_app.runtimes.progress import print_result

    status = 0

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(_: Any) -> None:
        nonlocal status
        hydra_config = HydraConfig.get()
        directory = Path(hydra_config.runtime.output_dir)
        task = [item for item in hydra_config.overrides.task if not item.startswith("run_dir=")]
        try:
            print_result(launch(task, directory), directory, console)
        except UserError as error:
            print(f"fedgh: {error}", file=sys.stderr)
            status = 2
            with contextlib.suppress(OSError):
                directory.rmdir()  # Hydra made it; nothing was written
        except RunFailed as error:
            goes_on = bool(index_files(directory))
            hint = f"; to go on: fedgh run resume={quoted(directory)}" if goes_on else ""
            print(f"fedgh: {error} (log: {directory / LOG}{hint})", file=sys.stderr)
            status = 1

    sys.argv = ["fedgh run", *flags, *overrides, f"hydra.run.dir={quoted(directory)}"]
    try:
        job()
    except KeyboardInterrupt:
        _fail(f"stopped; to go on: fedgh run resume={quoted(directory)}", 130)
    sys.exit(status)


def _run_sweep(overrides: list[str]) -> None:
    resume = [item.partition("=")[2] for item in overrides if item.startswith("resume=")]
    overrides = [item for item in overrides if not item.startswith("resume=")]
    # Every job, before the first one starts.
    jobs = [] if resume else [compose_config(job) for job in expand_sweep(overrides)]

    from fedgh_app.runtimes.sweep import Sweep, command

    if resume:
        folder = Path(compose_config([f"resume={resume[-1]}"]).resume).expanduser().resolve()
        sweep = Sweep.read(folder).changed(overrides)
        for planned in sweep.jobs:
            compose_config(planned.overrides)
    else:
        folder = Path(jobs[0].run_dir or f"runs/sweep-{time.strftime('%Y%m%d-%H%M%S')}").expanduser().resolve()
        grouped = all(job.tracking.name == "wandb" and job.tracking.group is None for job in jobs)
        asked = [item for item in overrides if not item.startswith("run_dir=")]
        sweep = Sweep.planned(folder, asked, folder.name if grouped else None)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(_: Any) -> None:
        sweep.run(HydraConfig.get().job.num, console)

    where = [f"hydra.sweep.dir={quoted(sweep.directory)}", "hydra.sweep.subdir=${hydra:job.num}"]
    sys.argv = ["fedgh run", "--multirun", *sweep.overrides, *where]
    with sweep.held():
        try:
            job()
        except (KeyboardInterrupt, SystemExit) as stop:
            sweep.print_status(console)
            _fail(f"stopped; to go on: {command(sweep.directory)}", getattr(stop, "code", None) or 130)
        sweep.print_status(console)
    console.print(escape(f"to compare them: fedgh report {sweep.directory}"), soft_wrap=True, highlight=False)
    if not sweep.completed:
        _fail(f"not all jobs completed; to try the others again: {command(sweep.directory)}", 1)


@app.command("list")
def list_choices() -> None:
    """Show the config groups, their choices and what each is."""
    table = Table(title="fedgh run GROUP=CHOICE …")
    for column in ("group", "choice", "what it is"):
        table.add_column(column, overflow="fold")
    for group, choices in groups().items():
        for place, choice in enumerate(choices):
            lines = (CONF / group / f"{choice}.yaml").read_text().splitlines()
            comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
            said = " ".join(line.lstrip("# ") for line in comment if "@package" not in line)
            table.add_row(group if place == 0 else "", choice, said)
        table.add_section()
    console.print(table)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders that hold them (a sweep).")],
    baseline: Annotated[
        str | None, typer.Option(help="Setting that the others are tested against, seed by seed, such as FedAvg.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html and report.md. [default: the sweep's own]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; pages only with --out.")] = False,
) -> None:
    """Compare runs: mean ± standard deviation over seeds, for each strategy. Of a sweep also as a page to read."""
    from fedgh_app.reports.settings import compare, print_report, settings_of
    from fedgh_app.runs.result import RESULT

    settings = settings_of(runs)
    rows = compare(settings, baseline)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        print_report(rows, console)
        if out is None and len(runs) == 1 and not (runs[0] / RESULT).exists():
            out = runs[0]
    if out is not None:
        from fedgh_app.reports.page import write

        for file in write(settings, runs, out, baseline):
            print(file, file=sys.stderr if as_json else sys.stdout)


@app.command()
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
    from fedgh_app.pose.prediction.prediction import asked_boxes, check_output, find_sources, predict_all
    from fedgh_app.pose.prediction.trained import predictor
    from fedgh_app.runs.opening import load_run

    check_output(out)
    sources = find_sources(inputs)
    given = asked_boxes(sources, boxes, box or [], min_box_score)
    model = predictor(load_run(run), decoding=decoding, flip_test=flip_test, batch_size=batch_size)
    info = {"made_by": "fedgh predict", "model": str(run), "boxes": None if boxes is None else str(boxes)}
    counts = _with_progress(
        "predicting",
        lambda told: predict_all(model, sources, out, boxes=given, min_score=min_score, info=info, progress=told),
    )
    console.print(escape(f"{counts} in {out}"), soft_wrap=True, highlight=False)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory, or one of several models in it.")],
    form: Annotated[str, typer.Option("--format", help="onnx")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write. [default: beside the model, model.onnx]")] = None,
    decoding: Annotated[str | None, typer.Option(help="How heatmaps are read. [default: as in the run]")] = None,
) -> None:
    """Write a run's model as ONNX: images in, keypoints and maps out; checked against PyTorch."""
    from fedgh_app.pose.prediction import trained
    from fedgh_app.runs.opening import load_run

    if form != "onnx":
        raise UserError(f"--format {form}: no such format; expected onnx")
    path = out or (run / "model.onnx" if run.is_dir() else run.with_suffix(".onnx"))
    agreement = trained.export(load_run(run), path, decoding=decoding)
    console.print(escape(f"{agreement}\n{path}, {path.stat().st_size / 1e6:.1f} MB"), soft_wrap=True, highlight=False)


@app.command()
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
    from fedgh_app.runs.opening import load_run

    opened = load_run(run)
    values = evaluated_on(opened.values, overrides or [])
    commands: Any = importlib.import_module(opened.task.commands)

    def work(told: Callable[[int, int], None] | None) -> Evaluation:
        return commands.evaluate(
            opened,
            values,
            side=split,
            detections=detections,
            oks_nms=oks_nms,
            out=out,
            progress=told,
        )

    if as_json:
        print(json.dumps(work(None).as_json(), indent=1))
        return
    found = _with_progress("predicting", work)
    console.print(found.score)
    if found.again is not None:
        console.print(f"in {out}; to score it again: {found.again}", soft_wrap=True, highlight=False, markup=False)


@app.command()
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
    from fedgh_app.pose.official import score as official_score

    found = official_score(dataset, truth, predictions, side=split, on_bad=on_bad)  # type: ignore[arg-type]  # checked there
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        console.print(found)


@data.command("arm")
def data_arm(
    root: Annotated[Path | None, typer.Option(help="Where to write it. [default: $FEDGH_HOME/data/arm]")] = None,
    count: Annotated[int, typer.Option(help="Images.")] = 2060,
    seed: Annotated[int, typer.Option(help="Seed of everything random in it.")] = 0,
) -> None:
    """Generate arms under a robot manipulator: four viewpoints, two postures, COCO-keypoint JSON."""
    from fedgh_app.pose.arms.generated import generate

    root = root or fedgh_home() / "data" / "arm"
    _with_progress("drawing arms", lambda progress: generate(root, count=count, seed=seed, progress=progress))
    console.print(f"{count} images in {root}", soft_wrap=True)


@data.command("lspet-arm")
def data_lspet_arm(
    source: Annotated[Path, typer.Option(help="Leeds Sports Pose Extended: joints.mat and images/.")],
    root: Annotated[Path | None, typer.Option(help="Where to write. [default: $FEDGH_HOME/data/lspet_arm]")] = None,
) -> None:
    """Cut single arms out of LSPET, each with the direction in which it points."""
    from fedgh_app.pose.arms.lspet import cut

    root = root or fedgh_home() / "data" / "lspet_arm"
    _with_progress("cutting arms", lambda progress: cut(source, root, progress=progress))
    console.print(f"arms in {root}", soft_wrap=True)


@data.command("check")
def data_check(
    dataset: Annotated[str, typer.Argument(help="A data set's name: " + ", ".join(groups()["dataset"]))],
    root: Annotated[Path | None, typer.Option(help="Where it lies. [default: as in conf/dataset]")] = None,
    out: Annotated[Path, typer.Option(help="Contact sheet to write.")] = Path("check.png"),
    count: Annotated[int, typer.Option(help="Images on the contact sheet.")] = 24,
    augmentation: Annotated[
        str | None, typer.Option(help="Draw them as training under this augmentation sees them.")
    ] = None,
) -> None:
    """Count a data set, say what is wrong with which file, and draw its skeletons on a contact sheet."""
    from fedgh_app.assembly.client import ClientAssembly
    from fedgh_app.pose.data.check import Seen, check
    from fedgh_app.pose.data.records import load_spec

    # Of what a check does not look at: what every data set goes with.
    chosen = [] if augmentation is None else [f"augmentation={augmentation}"]
    config = compose_config([f"dataset={dataset}", "partition=iid", "sharing=fedpav", *chosen])
    if "members" in config.dataset:
        names = " or ".join(map(str, config.dataset.members))
        raise UserError(f"data check {dataset}: it holds several data sets; expected one of them: {names}")
    spec, root = load_spec(config.dataset.spec), root or Path(config.dataset.root)
    assembled = ClientAssembly(config)
    seen = Seen(assembled.augmentation, tuple(config.dataset.input_size)) if chosen else None
    found = _with_progress(
        "reading images", lambda told: check(spec, root, out=out, count=count, seen=seen, progress=told)
    )
    console.print(found)
    if found.bad:
        sys.exit(1)


@data.command("partition", context_settings=PASS_ON)
def data_partition(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Plot to write.")] = Path("partition.png"),
) -> None:
    """Show who would hold what: fedgh data partition dataset=arm partition=dirichlet num_clients=5."""
    from fedgh_app.assembly.client import ClientAssembly
    from fedgh_app.server_app import draw_holdings

    config = compose_config([argument for argument in context.args if not argument.startswith("-")])
    shared = ClientAssembly(config).data
    if shared.held_by_sites:
        raise UserError("partition=site: every site holds its own data; expected a partition that deals one data set")
    number = sum(shared.clients_of().values())
    dealt = shared.deal(number)
    table = Table(title=f"{shared.name}, {number} clients")
    for column in ("client", "data set", "holds", "training images", "test images"):
        if column != "data set" or len(dealt) > 1:
            table.add_column(column)
    for member, one in dealt.items():
        for label, train, test in zip(one.parts.labels, one.parts.train, one.parts.test, strict=True):
            named = (member,) if len(dealt) > 1 else ()
            holds = one.data.contents(train) or label
            table.add_row(str(table.row_count), *named, holds, str(len(train)), str(len(test)))
    console.print(table)
    draw_holdings(dealt, out, shared.name)
    console.print(f"plot: {out}")


def _with_progress(title: str, work: Callable[[Callable[[int, int], None]], T]) -> T:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        return work(lambda done, total: bar.update(task, completed=done, total=total))
