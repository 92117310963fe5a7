"""What an official evaluation says: percentages in the order in which papers print them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedgh_app.errors import UserError
from fedgh_app.pose.data.split import Side


def check_side(side: str) -> None:
    """Raise a `UserError` for what is no side."""
    if side not in get_args(Side):
        raise UserError(f"--split {side}: expected {', '.join(get_args(Side))}")


@dataclass(frozen=True)
class Score:
    """An official evaluation of a data set.

    Attributes:
        title: data set and metric.
        rows: for each metric, such as ``PCKh@0.5``, the percentage of each group of keypoints; the first metric is the
            one that papers compare. nan where nothing was annotated.
        people: how many annotated people were scored.
        rule: what exactly was measured, in a sentence.
        left_out: people that were to be scored and were not.
    """

    title: str
    rows: Mapping[str, Mapping[str, float]]
    people: int
    rule: str
    left_out: int = 0

    def as_json(self) -> dict[str, float | int | None]:
        """Every number or None by name: of the first metric as it is, of the others with their threshold behind."""
        first, *others = self.rows
        found = dict(self.rows[first])
        for metric in others:
            found |= {f"{name}@{metric.partition('@')[2]}": value for name, value in self.rows[metric].items()}
        threshold = first.partition("@")[2]
        return {
            **{name: value if math.isfinite(value) else None for name, value in found.items()},
            **({"threshold": float(threshold)} if threshold else {}),
            "people": self.people,
            **({"left_out": self.left_out} if self.left_out else {}),
        }

    def __rich__(self) -> RenderableType:
        """The table that papers print."""
        table = Table(
            title=f"{self.title} (%)", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        table.add_column("")
        for name in next(iter(self.rows.values())):
            table.add_column(name, justify="right")
        for metric, values in self.rows.items():
            table.add_row(metric, *(f"{value:.2f}" if math.isfinite(value) else "-" for value in values.values()))
        left_out = f", {self.left_out} left out" if self.left_out else ""
        return Group(table, Text(f"{self.people} people{left_out}; {self.rule}", style="dim"))
