"""Words of a page in Markdown: numbers, and the texts of others."""

from __future__ import annotations


def percent(value: float | None) -> str:
    """``57.3 %``, or a dash."""
    return "-" if value is None else f"{100 * value:.1f} %"


def count(number: int, one: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number} {one}{'' if number == 1 else 's'}"


def plain(text: str) -> str:
    """A text of somebody else's in a line of Markdown."""
    return " ".join(text.split()).rstrip(".")


def cell(text: object) -> str:
    """The same in a cell of a table."""
    return plain(str(text)).replace("|", "\\|")
