"""The ``fedgh`` command. What its commands do is imported once one of them is called: a slip is told at once."""

import io
import signal
import sys

import typer

from fedgh_app.cli import data, deploy, models, report, run
from fedgh_app.cli.terminal import PASS_ON, fail
from fedgh_app.errors import RunFailed, UserError

app = typer.Typer(
    name="fedgh",
    help="Federated human-pose estimation on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(context_settings=PASS_ON)(run.run)
app.command("list")(run.list_choices)
app.command()(report.report)
for _command in (models.predict, models.export, models.evaluate, models.score):
    app.command()(_command)
app.add_typer(data.app, name="data")
app.add_typer(deploy.app, name="deploy")


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
        fail(error, 2)
    except RunFailed as error:
        fail(error, 1)
    except KeyboardInterrupt:
        fail("stopped", 130)
