"""``history.jsonl``: what happened in each round, one line a round."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

HISTORY = "history.jsonl"

# A mean of ones may be a little above 1. JSON has no nan: what was not measured is null in a file, None when read.
Share = Annotated[float, Field(ge=0, le=1 + 1e-9)] | None
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Record(BaseModel):
    """What a file of a run directory holds. Keys that are not known are passed over: another version may write more."""

    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="null")


class Rejected(Record):
    """A reply that no strategy saw."""

    round: int
    client: str
    reason: str


class Measured(Record):
    """One evaluation; `fedgh_app.vision.tally.Scores` says what the scores are."""

    score: Share = None
    parts: dict[str, Share] = {}
    more: dict[str, Share] = {}
    labelled: dict[str, int] = {}
    loss: float | None = None
    examples: int = 0


class MeasuredByClients(Measured):
    """The clients' evaluations, each on its own test images: all of these pooled, and how the clients differ.

    Attributes:
        weighted: mean of the clients' own results, weighted by their test examples.
        std: population standard deviation of the clients' scores.
        worst_client, worst: who has the lowest score, and that.
        by_client: each client's own evaluation.
    """

    weighted: Measured = Measured()
    std: float | None = None
    worst_client: str | None = None
    worst: Share = None
    by_client: dict[str, Measured] = {}


class Evaluations(Record):
    """Who tested the model after a round, and what they found."""

    central: Measured | None = None
    clients: MeasuredByClients | None = None

    @property
    def headline(self) -> Measured:
        """What counts: the server's own, else the clients', weighted by their test images."""
        if self.central is not None:
            return self.central
        if self.clients is None:
            return Measured()
        weighted = self.clients.weighted
        return self.clients.model_copy(update={"score": weighted.score, "parts": weighted.parts, "more": weighted.more})


class Round(Record):
    """What happened in one round; round 0 is the evaluation before training.

    Attributes:
        train: what clients reported: under ``clients`` by name, beside it the averages.
        evaluate: of the model after the round.
        strategy: diagnostics of the strategy.
        seconds: wall time by phase.
        bytes: of array data, ``down`` and ``up``.
        rejected: replies that no strategy saw.
        absent: who could not be asked as the round began, and why.
        clusters, selection, distillation, privacy: filled by the axes that are on.
    """

    round: int
    train: dict[str, Any] = {}
    evaluate: Evaluations = Evaluations()
    strategy: dict[str, Any] = {}
    seconds: dict[str, Seconds] = {}
    bytes: dict[str, int] = {}
    rejected: list[Rejected] = []
    absent: dict[str, str] = {}
    clusters: dict[str, list[str]] = {}
    selection: dict[str, Any] = {}
    distillation: dict[str, Any] = {}
    privacy: dict[str, Any] = {}

    @model_validator(mode="after")
    def _square(self) -> Self:
        """Refuse a matrix of cosines that is not one row and one column for each client."""
        names, cosines = self.strategy.get("clients") or [], self.strategy.get("cosines") or []
        if cosines and {len(cosines), *map(len, cosines)} != {len(names)}:
            raise ValueError(f"cosines: expected one row and one column for each of {len(names)} clients")
        return self

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's wall time to ``seconds[phase]``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def scored(history: Sequence[Round]) -> dict[int, float]:
    """The headline by round, of the rounds that were evaluated."""
    return {one.round: one.evaluate.headline.score for one in history if one.evaluate.headline.score is not None}
