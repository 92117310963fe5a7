"""``fedgh data``: data sets made, checked and parted."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fedgh_app.cli.task_options import MODULES, Options, function_of, with_options
from fedgh_app.cli.terminal import PASS_ON, console, with_progress
from fedgh_app.config.choices import groups
from fedgh_app.config.compose import compose_config, fedgh_home
from fedgh_app.errors import UserError

app = typer.Typer(help="Make, convert and check data sets.", no_args_is_help=True)


def _makes(title: str, make: Callable[..., object]) -> None:
    """Add the command that has a task make one of its data sets."""

    def command(*, options: Options) -> None:
        home = fedgh_home() / "data"
        console.print(with_progress(title, lambda told: make(**options, home=home, progress=told)), soft_wrap=True)

    app.command(make.__name__.replace("_", "-"))(with_options(command, [make]))


for _module in MODULES:
    for _title, _make in getattr(_module, "MAKES", {}).items():
        _makes(_title, _make)


@app.command("check")
def data_check(
    dataset: Annotated[str, typer.Argument(help="A data set's name: " + ", ".join(groups()["dataset"]))],
    root: Annotated[Path | None, typer.Option(help="Where it lies. \\[default: as in conf/dataset]")] = None,
    out: Annotated[Path, typer.Option(help="Contact sheet to write.")] = Path("check.png"),
    count: Annotated[int, typer.Option(help="Images on the contact sheet.", min=0)] = 24,
    augmentation: Annotated[
        str | None, typer.Option(help="Draw them as training under this augmentation sees them.")
    ] = None,
) -> None:
    """Count a data set, say what is wrong with which file, and draw its annotations on a contact sheet."""
    from fedgh_app.assembly.client import ClientAssembly

    # Of what a check does not look at: what every data set goes with.
    chosen = [] if augmentation is None else [f"augmentation={augmentation}"]
    config = compose_config([f"dataset={dataset}", "partition=iid", "sharing=fedpav", *chosen])
    if "members" in config.dataset:
        names = " or ".join(map(str, config.dataset.members))
        raise UserError(f"data check {dataset}: it holds several data sets; expected one of them: {names}")
    assembly = ClientAssembly(config)
    check = function_of(assembly.task.name, "check")
    values, seen_under = assembly.values["dataset"], assembly.augmentation if chosen else None
    found = with_progress(
        "reading images", lambda told: check(values, root, seen_under, out=out, count=count, progress=told)
    )
    console.print(found)
    if found.bad:
        sys.exit(1)


@app.command("partition", context_settings=PASS_ON)
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
