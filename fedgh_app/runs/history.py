"""``history.jsonl``: what happened in each round, one line a round."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator

from fedgh_app.runs import storage
from fedgh_app.runs.records import Measurable, Record, Seconds, Share
from fedgh_app.vision.files import replacing
from fedgh_app.vision.tally import Scores

HISTORY = "history.jsonl"

Number = Annotated[float | None, Measurable]


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
    loss: Number = None
    examples: int = 0  # how many were tested

    @classmethod
    def of(cls, scores: Scores, **beside: Any) -> Self:
        """What a tally came to, and the other fields."""
        return cls(**{**vars(scores), **beside})


class MeasuredByClients(Measured):
    """The clients' evaluations, each on its own test images: all of these pooled, and how the clients differ."""

    weighted: Measured = Measured()  # mean of the clients' own results, weighted by their test examples
    std: Number = None  # population standard deviation of the clients' scores
    worst_client: str | None = None  # who has the lowest score
    worst: Share = None
    by_client: dict[str, Measured] = {}  # each client's own evaluation


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


def _square(diagnostics: dict[str, Any]) -> dict[str, Any]:
    """Refuse a matrix of cosines that is not one row and one column for each client."""
    names, cosines = diagnostics.get("clients") or [], diagnostics.get("cosines") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("clients: expected a list of names")
    if not isinstance(cosines, list) or not all(isinstance(row, list) for row in cosines):
        raise ValueError("cosines: expected a list of lists")
    if cosines and {len(cosines), *map(len, cosines)} != {len(names)}:
        raise ValueError(f"cosines: expected one row and one column for each of {len(names)} clients")
    # Rounding may take a cosine a little beyond 1.
    if not all(v is None or (type(v) in (int, float) and abs(v) <= 1.001) for row in cosines for v in row):
        raise ValueError("cosines: expected numbers from -1 to 1, or null")
    return diagnostics


class Round(Record):
    """What happened in one round; round 0 is the evaluation before training."""

    EXPECTED: ClassVar[str] = "a run's history"

    round: int
    train: dict[str, Any] = {}  # what clients reported: under ``clients`` by name, beside it the averages
    evaluate: Evaluations = Evaluations()  # of the model after the round
    strategy: Annotated[dict[str, Any], AfterValidator(_square)] = {}  # diagnostics of the strategy
    seconds: dict[str, Seconds] = {}  # wall time by phase
    bytes: dict[str, int] = {}  # of array data, ``down`` and ``up``
    rejected: list[Rejected] = []  # replies that no strategy saw
    absent: dict[str, str] = {}  # who could not be asked as the round began, and why
    clusters: dict[str, list[str]] = {}  # this and what follows is filled by the axes that are on
    selection: dict[str, Any] = {}
    distillation: dict[str, Any] = {}
    privacy: dict[str, Any] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's wall time to ``seconds[phase]``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started

    def append(self, directory: Path) -> None:
        """Write it after the lines that the run directory has; it is on the disk afterwards."""
        storage.append_line(directory / HISTORY, self)


def read_history(directory: Path) -> list[Round]:
    """All rounds of a run; none where clients trained alone. UserError where the file is damaged."""
    return [Round.checked(line, directory / HISTORY) for line in storage.read_lines(directory / HISTORY)]


def write_history(directory: Path, rounds: Iterable[Round]) -> None:
    """Write these rounds in the place of those that the run directory has, atomically."""
    with replacing(directory / HISTORY) as draft:
        draft.write_text("".join(map(storage.line, rounds)))


def scored(history: Sequence[Round]) -> dict[int, float]:
    """The headline by round, of the rounds that were evaluated."""
    scores = {each.round: each.evaluate.headline.score for each in history}
    return {number: score for number, score in scores.items() if score is not None}
