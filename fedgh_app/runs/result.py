"""``result.json``: what a run came to."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError

from fedgh_app.errors import UserError
from fedgh_app.runs import storage
from fedgh_app.runs.history import Record, Rejected, Seconds, Share

RESULT = "result.json"


class ClientFacts(Record):
    """What a client said of itself at the start."""

    label: str
    examples: int
    test_examples: int


class Durations(Record):
    """Wall seconds: ``total`` from the first query on, ``rounds`` of the rounds with their callbacks."""

    total: Seconds = 0.0
    rounds: Seconds


class Result(Record):
    """What a run came to, beside fields of the task's own.

    Attributes:
        metric: name of the headline, such as PCK@0.2.
        part: what a part is called.
        score: the headline, 0 to 1; null where nothing was measured.
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

    model_config = ConfigDict(extra="allow", ser_json_inf_nan="null")

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
    privacy: dict[str, float | None] = {}
    dataset: str = ""

    @classmethod
    def read(cls, directory: Path) -> Result:
        """From a run directory; UserError where the file is damaged."""
        file = directory / RESULT
        try:
            return cls.model_validate(storage.read_json(file), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                " ".join(f"{file}: {place}: {first['msg']}; expected the result of a run".split())
            ) from None
