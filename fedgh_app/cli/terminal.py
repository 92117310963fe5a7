"""What the commands write to the terminal with."""

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

# For a command that takes its arguments as they are.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
console = Console()


def fail(error: object, status: int) -> NoReturn:
    """End the command with one line and a status."""
    print(f"fedgh: {error}", file=sys.stderr)
    sys.exit(status)


def say(text: object) -> None:
    """Print text that is not to be marked up, coloured or wrapped."""
    console.print(escape(str(text)), soft_wrap=True, highlight=False)


def with_progress(title: str, work: Callable[[Callable[[int, int], None]], T]) -> T:
    """Do ``work``, which is given what it tells its progress: how much is done, and how much there is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        return work(lambda done, total: bar.update(task, completed=done, total=total))
