"""Live progress of a run on the terminal, read from its ``history.jsonl``, and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from fedgh_app.runs import storage
from fedgh_app.runs.directory import MODEL, PLOTS
from fedgh_app.runs.history import HISTORY, Round
from fedgh_app.runs.records import TRACKING, Tracking
from fedgh_app.runs.result import RESULT

MOST_CLIENTS = 24  # rows of the table by client


class Display:
    """A bar over the rounds and one line for each round that has ended.

    Args:
        config: the run's config.
        directory: its run directory, whose history is followed.
        title: what is run; by default strategy and data set.
        quiet: show nothing.
    """

    def __init__(self, config: DictConfig, directory: Path, *, title: str | None = None, quiet: bool = False) -> None:
        self.config = config
        self.directory = directory
        self.console = Console(quiet=quiet)
        self.read = 0  # bytes of the history that were shown
        self.file: int | None = None  # inode of the history: a run that is resumed writes the rounds it keeps anew
        strategy = str(config.strategy._target_).rsplit(".", 1)[-1]
        self.title = title or f"{strategy} on {config.dataset.spec}"
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True)
        self.task = self.progress.add_task(self.title, total=config.rounds)
        self.started = time.monotonic()

    def __enter__(self) -> Self:
        self.progress.start()
        self.console.print(
            f"{self.title}, rounds: {self.config.rounds}, run directory {escape(str(self.directory))}", soft_wrap=True
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
            self.console.print(self._line(line), soft_wrap=True, highlight=False)
            self.progress.update(self.task, completed=line["round"], description=self.title)

    def _line(self, line: dict[str, Any]) -> str:
        parts = [f"round {line['round']:>3}"]
        if (loss := line["train"].get("loss")) is not None:
            parts.append(f"loss {loss:.4f}")
        if (pck := Round.checked(line, self.directory / HISTORY).evaluate.headline.score) is not None:
            parts.append(f"PCK {100 * pck:5.1f} %")
        if clusters := line.get("clusters"):
            parts.append(f"{len(clusters)} cluster{'s' if len(clusters) > 1 else ''}")
        if late := max(line["strategy"].get("staleness", {}).values(), default=0):
            parts.append(f"staleness up to {late}")
        if dropped := line["strategy"].get("dropped"):
            parts.append(f"{dropped} dropped as too stale")
        if (conflicts := line["strategy"].get("conflicting")) is not None:
            by_tensor = line["strategy"].get("conflicting_per_tensor", {}).values()
            tensors = f" ({100 * sum(by_tensor) / len(by_tensor):.0f} % by tensor)" if by_tensor else ""
            parts.append(f"{100 * conflicts:.0f} % of pairs in conflict{tensors}")
        if seconds := line["seconds"].get("total"):
            parts.append(f"{seconds:.1f} s")
        for item in line["rejected"]:
            parts.append(f"[red]rejected {escape(item['client'])}: {escape(item['reason'])}[/red]")
        for name, reason in line.get("absent", {}).items():
            parts.append(f"[yellow]not asked {escape(name)}: {escape(reason)}[/yellow]")
        return "  ".join(parts)


def print_result(result: dict[str, Any], directory: Path, metric: str, console: Console | None = None) -> None:
    """PCK per keypoint before and after, per client, and where everything lies; ``metric`` names the PCK."""
    console = console or Console()
    where = "held-out images" if result["evaluated"] == "central" else "the clients' own test images"
    table = Table(title=f"{metric} on {where} (%)")
    table.add_column("keypoint")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    before = result.get("before") or {}
    for name, value in result["per_keypoint"].items():
        table.add_row(name, _percent(before.get(name)), _percent(value))
    table.add_section()
    known = [value for value in before.values() if value is not None]
    table.add_row(
        "mean",
        _percent(sum(known) / len(known) if known else None),
        f"[bold]{_percent(result['pck'])}[/bold]",
    )
    console.print(table)
    found = dict(result.get("clients_pck", {}))
    if len(found) > 1:
        which = ""
        if len(found) > MOST_CLIENTS:
            which = f", the worst {MOST_CLIENTS} of {len(found)}"
            known = [(value, name) for name, value in found.items() if value is not None]
            found = {name: value for value, name in sorted(known)[:MOST_CLIENTS]}
        clients = Table(title=f"{metric} by client, own test images (%){which}")
        for column in ("client", "holds", "training images", "PCK"):
            clients.add_column(column, justify="left" if column in ("client", "holds") else "right")
        for name, value in found.items():
            info = result["clients"].get(name, {})
            clients.add_row(escape(name), escape(str(info.get("label"))), str(info.get("examples")), _percent(value))
        console.print(clients)
    if result["rejected"]:
        console.print(_rejected(result["rejected"]))
    seconds = result["seconds"]
    console.print(
        f"rounds: {result['rounds']} in {seconds['rounds']:.0f} s; rejected replies: {len(result['rejected'])}"
    )
    for name in (RESULT, HISTORY, MODEL):
        if (directory / name).exists():
            console.print(f"  {escape(str(directory / name))}", soft_wrap=True)
    for plot in sorted((directory / PLOTS).glob("*.png")):
        console.print(f"  {escape(str(plot))}", soft_wrap=True)
    if (directory / TRACKING).exists():
        tracked = Tracking.read(directory)
        line = f"W&B run is offline; upload it with: {tracked.sync}" if tracked.sync else f"W&B run: {tracked.url}"
        console.print(escape(line), soft_wrap=True)


def _rejected(items: Sequence[Mapping[str, Any]]) -> Table:
    """Who sent what could not be used, and in which rounds."""
    rounds: dict[tuple[str, str], list[int]] = {}
    for item in items:
        rounds.setdefault((item["client"], item["reason"]), []).append(item["round"])
    table = Table(title="rejected replies")
    for column in ("client", "rounds", "reason"):
        table.add_column(column, overflow="fold")
    for (client, reason), found in sorted(rounds.items()):
        table.add_row(escape(client), ", ".join(map(str, found)), escape(reason))
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
