"""Where what a benchmark found goes: its table, its JSON file, and the option that names it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Parser of a benchmark's options, with ``--json FILE``, by default ``benchmarks/results/NAME.json``.

    Args:
        name: of the benchmark.
        doc: its module's docstring, whose first line describes it.
    """
    made = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    made.add_argument("--json", type=Path, default=Path("benchmarks/results") / f"{name}.json")
    return made


def write(file: Path, found: Any) -> None:
    """Write what was found as JSON, dataclasses as their fields; the folder is made where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1, default=asdict) + "\n")


def show(file: Path, found: Any, table: Table, *, width: int | None = None) -> None:
    """Print what was found as a table, as wide as the terminal where ``width`` is not said, and write it as JSON."""
    Console(width=width).print(table)
    write(file, found)


def empty_table(title: str, headings: Sequence[str], *, left: Collection[str] | None = None) -> Table:
    """A table without rows, its columns aligned to the right but for those named in ``left``, by default the first."""
    made = Table(title=title)
    for heading in headings:
        made.add_column(heading, justify="left" if heading in (headings[:1] if left is None else left) else "right")
    return made
