"""What a task adds to a model card."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """The task's own words in a model card, as lines of Markdown.

    Attributes:
        what: one sentence on what the model is and does.
        usage: commands and Python that predict with it, in which ``RUN`` stands for the model's place.
        measured: how the headline is defined, and how it was read off the model.
        limits: what the model is not good for, beside what the numbers tell.
    """

    what: str
    usage: tuple[str, ...]
    measured: tuple[str, ...]
    limits: tuple[str, ...]
