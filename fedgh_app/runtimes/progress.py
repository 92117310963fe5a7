"""Live progress of a run on the terminal, read from its ``history.jsonl``, and the tables at its end."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedgh_app.runs import storage
from fedgh_app.runs.directory import MODEL, PLOTS
from fedgh_app.runs.history import HISTORY, Rejected, Round
from fedgh_app.runs.records import TRACKING, Tracking
from fedgh_app.runs.result import RESULT, Result
from fedgh_app.words import percentage, short

MOST_CLIENTS = 24  # rows of the table by client


class Display:
    """A bar over the rounds, and a line for each that has ended, as the history in the run directory tells it."""

    def __init__(self, directory: Path, *, title: str, rounds: int, metric: str, quiet: bool = False) -> None:
        self.directory, self.title, self.rounds, self.metric = directory, title, rounds, short(metric)
        self.console = Console(quiet=quiet)
        self.read = 0  # bytes of the history that were shown
        self.file: int | None = None  # inode of the history: a run that is resumed writes the rounds it keeps anew
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True)
        self.task = self.progress.add_task(title, total=rounds)
        self.started = time.monotonic()

    def __enter__(self) -> Self:
        self.progress.start()
        self.console.print(
            f"{self.title}, rounds: {self.rounds}, run directory {escape(str(self.directory))}", soft_wrap=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def stage(self, text: str) -> None:
        """Say what is being waited for."""
        self.progress.update(self.task, description=f"{self.title}: {text}")

    def update(self) -> None:
        """Show the rounds that have ended since the last call."""
        history = self.directory / HISTORY
        if not history.exists():
            return
        kept = self.file is not None and self.file != history.stat().st_ino
        self.file = history.stat().st_ino
        lines, self.read = storage.read_on(history, 0 if kept else self.read)
        for line in [] if kept else lines:
            ended = Round.checked(line, history)
            self.console.print(_line(ended, self.metric), soft_wrap=True, highlight=False)
            self.progress.update(self.task, completed=ended.round, description=self.title)


def _line(ended: Round, metric: str) -> str:
    parts = [f"round {ended.round:>3}"]
    if (loss := ended.train.get("loss")) is not None:
        parts.append(f"loss {loss:.4f}")
    if (score := ended.evaluate.headline.score) is not None:
        parts.append(f"{metric} {100 * score:5.1f} %")
    if ended.clusters:
        parts.append(f"{len(ended.clusters)} cluster{'s' if len(ended.clusters) > 1 else ''}")
    if late := max(ended.strategy.get("staleness", {}).values(), default=0):
        parts.append(f"staleness up to {late}")
    if dropped := ended.strategy.get("dropped"):
        parts.append(f"{dropped} dropped as too stale")
    alone = len(ended.strategy.get("clients") or ()) == 1
    if not alone and (conflicts := ended.strategy.get("conflicting")) is not None:
        by_tensor = ended.strategy.get("conflicting_per_tensor", {}).values()
        tensors = f" ({100 * sum(by_tensor) / len(by_tensor):.0f} % by tensor)" if by_tensor else ""
        parts.append(f"{100 * conflicts:.0f} % of pairs in conflict{tensors}")
    if seconds := ended.seconds.get("total"):
        parts.append(f"{seconds:.1f} s")
    for item in ended.rejected:
        parts.append(f"[red]rejected {escape(item.client)}: {escape(item.reason)}[/red]")
    for name, reason in ended.absent.items():
        parts.append(f"[yellow]not asked {escape(name)}: {escape(reason)}[/yellow]")
    return "  ".join(parts)


def print_result(result: Result, directory: Path, console: Console) -> None:
    """The headline by part before and after, by client, and where everything lies."""
    console.print(_by_part(result))
    if len(result.clients_score) > 1:
        console.print(_by_client(result))
    if result.rejected:
        console.print(_rejected(result.rejected))
    rejected = f"rejected replies: {len(result.rejected)}"
    console.print(f"rounds: {result.rounds} in {result.seconds.rounds:.0f} s; {rejected}")
    for name in (RESULT, HISTORY, MODEL):
        if (directory / name).exists():
            console.print(f"  {escape(str(directory / name))}", soft_wrap=True)
    for plot in sorted((directory / PLOTS).glob("*.png")):
        console.print(f"  {escape(str(plot))}", soft_wrap=True)
    if (directory / TRACKING).exists():
        tracked = Tracking.read(directory)
        line = f"W&B run is offline; upload it with: {tracked.sync}" if tracked.sync else f"W&B run: {tracked.url}"
        console.print(escape(line), soft_wrap=True)


def _by_part(result: Result) -> Table:
    """The headline of each part and their mean, before and after training."""
    where = "held-out images" if result.evaluated == "central" else "the clients' own test images"
    table = Table(title=f"{result.metric} on {where} (%)")
    table.add_column(result.part)
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name, score in result.parts.items():
        table.add_row(escape(name), percentage(result.before.get(name)), percentage(score))
    table.add_section()
    before = [score for score in result.before.values() if score is not None]
    mean = sum(before) / len(before) if before else None
    table.add_row("mean", percentage(mean), f"[bold]{percentage(result.score)}[/bold]")
    return table


def _by_client(result: Result) -> Table:
    """The headline on each client's own test images; of many clients the worst."""
    scores, which = dict(result.clients_score), ""
    if len(scores) > MOST_CLIENTS:
        which = f", the worst {MOST_CLIENTS} of {len(scores)}"
        known = [(score, name) for name, score in scores.items() if score is not None]
        scores = {name: score for score, name in sorted(known)[:MOST_CLIENTS]}
    table = Table(title=f"{result.metric} by client, own test images (%){which}")
    for column in ("client", "holds", "training images", short(result.metric)):
        table.add_column(column, justify="left" if column in ("client", "holds") else "right")
    for name, score in scores.items():
        client = result.clients.get(name)
        holds, images = (client.label, str(client.examples)) if client else ("-", "-")
        table.add_row(escape(name), escape(holds), images, percentage(score))
    return table


def _rejected(items: Sequence[Rejected]) -> Table:
    """Who sent what could not be used, and in which rounds."""
    rounds: dict[tuple[str, str], list[int]] = {}
    for item in items:
        rounds.setdefault((item.client, item.reason), []).append(item.round)
    table = Table(title="rejected replies")
    for column in ("client", "rounds", "reason"):
        table.add_column(column, overflow="fold")
    for (client, reason), numbers in sorted(rounds.items()):
        table.add_row(escape(client), ", ".join(map(str, numbers)), escape(reason))
    return table
