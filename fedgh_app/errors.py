"""The errors that are told in one line: what a user got wrong, and a run that cannot go on."""

from collections.abc import Sequence


class UserError(ValueError):
    """Bad input, told in one line.

    The message names the file or config key, the value found and what was expected. The command line prints
    it as it is and exits with status 2; a traceback would only hide it.
    """


class RunFailed(RuntimeError):
    """The run cannot go on; the message is one line that says why."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def abbreviated(names: Sequence[str], separator: str = ", ", *, most: int = 5) -> str:
    """The first names of many in a line, and how many more there are."""
    more = f"{separator}and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
