"""How a run can end early. What a user got wrong is a `fedgh_app.pose.errors.UserError`."""

from collections.abc import Sequence


class RunFailed(RuntimeError):
    """The run cannot go on; the message is one line that says why."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def few(names: Sequence[str], separator: str = ", ", *, most: int = 5) -> str:
    """The first names of many in a line, and how many more there are."""
    more = f"{separator}and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
