"""``result.json``: what a run came to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fedgh_app.runs.history import Rejected
from fedgh_app.runs.records import Epsilon, Record, RecordFile, Seconds, Share

RESULT = "result.json"


class ClientFacts(Record):
    """What a client said of itself at the start."""

    label: str
    examples: Annotated[int, Field(ge=0)]
    test_examples: Annotated[int, Field(ge=0)]


class Durations(Record):
    """Wall seconds: ``total`` from the first query on, ``rounds`` of the rounds with their callbacks."""

    total: Seconds = 0.0
    rounds: Seconds


class Result(RecordFile):
    """What a run came to, beside fields of the task's own.

    Attributes:
        metric: name of the headline, such as PCK@0.2.
        part: what a part is called.
        score: the headline, 0 to 1; None where nothing was measured.
        parts: the headline of each part: a keypoint, a class.
        before: likewise, before training.
        more: further metrics of the task.
        evaluated: who measured it: the server on test images of all, or each client on its own.
        rejected: replies that no strategy saw.
        clients: by name.
        clients_score: the headline of each client on its own test images.
        privacy: what differential privacy was spent; empty without.
        dataset: its name.
    """

    NAME = RESULT
    EXPECTED = "the result of a run"
    model_config = ConfigDict(extra="allow")

    metric: str
    part: str = "part"
    score: Share
    parts: dict[str, Share]
    before: dict[str, Share] = {}
    more: dict[str, Share] = {}
    evaluated: Literal["central", "clients"]
    rounds: int
    seconds: Durations
    rejected: list[Rejected]
    clients: dict[str, ClientFacts] = {}
    clients_score: dict[str, Share] = {}
    privacy: dict[str, Epsilon] = {}
    dataset: str = ""
