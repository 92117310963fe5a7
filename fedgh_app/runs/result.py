"""``result.json``: what a run came to."""

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
    """What a run came to, beside fields of the task's own."""

    NAME = RESULT
    EXPECTED = "the result of a run"
    model_config = ConfigDict(extra="allow")

    metric: str  # name of the headline, with its threshold
    part: str = "part"  # what a part is called
    score: Share  # the headline, 0 to 1; None where nothing was measured
    parts: dict[str, Share]  # the headline of each part of what is predicted
    before: dict[str, Share] = {}  # likewise, before training
    more: dict[str, Share] = {}  # further metrics of the task
    evaluated: Literal["central", "clients"]  # measured by the server, or by each client on its own test images
    rounds: int
    seconds: Durations
    rejected: list[Rejected]  # replies that no strategy saw
    clients: dict[str, ClientFacts] = {}  # by name
    clients_score: dict[str, Share] = {}  # the headline of each client on its own test images
    privacy: dict[str, int | Epsilon] = {}  # what differential privacy was spent; empty without
    dataset: str = ""
