"""Words of a table or a page: numbers, plurals, and the texts of others."""


def percent(value: float | None) -> str:
    """``57.3 %``, or a dash."""
    return "-" if value is None else f"{100 * value:.1f} %"


def percentage(value: float | None) -> str:
    """``57.3``, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def count(number: int, noun: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Of ``round`` ``rounds``, of ``class`` ``classes``, of ``identity`` ``identities``."""
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "sh", "tch")) else f"{noun}s"


def short(metric: str) -> str:
    """``mAP`` of ``mAP@0.5``; of a headline that names several metrics each once."""
    return ", ".join(dict.fromkeys(name.partition("@")[0] for name in metric.split(", ")))


def plain(text: str) -> str:
    """A text of somebody else's in a line of Markdown."""
    return " ".join(text.split()).rstrip(".")


def cell(text: object) -> str:
    """The same in a cell of a table."""
    return plain(str(text)).replace("|", "\\|")
