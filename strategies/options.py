"""What a strategy's constructor says when an option is none that it knows."""

from collections.abc import Collection


def one_of(option: str, value: str, choices: Collection[str]) -> str:
    """Return the value, or raise ``ValueError`` with what could stand there."""
    if value not in choices:
        raise ValueError(f"{option} is one of {', '.join(choices)}, got {value!r}")
    return value


def at_least(option: str, value: int, smallest: int) -> int:
    """Return the value, or raise ``ValueError`` if it is smaller than it may be."""
    if value < smallest:
        raise ValueError(f"{option} is a whole number >= {smallest}, got {value}")
    return value
