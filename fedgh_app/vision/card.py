"""What a task adds to a model card."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """The task's own words in a model card, as lines of Markdown."""

    what: str  # one sentence on what the model is and does
    usage: tuple[str, ...]  # commands and Python that predict with it, in which ``RUN`` stands for the model's place
    measured: tuple[str, ...]  # how the headline is defined, and how it was read off the model
    limits: tuple[str, ...]  # what the model is not good for, beside what the numbers tell
