"""What a run writes is what is read of it; what is damaged is one line that names file and key."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from fedgh_app.errors import UserError
from fedgh_app.runs.checkpoints import Best
from fedgh_app.runs.environment import Machine
from fedgh_app.runs.history import HISTORY, Evaluations, Measured, MeasuredByClients, Round, read_history, scored
from fedgh_app.runs.records import Failure, Launch, PrivacyAccount, RecordFile, Tracking
from fedgh_app.runs.result import ClientFacts, Durations, Result
from fedgh_app.runs.sweep import Job, Sweep
from fedgh_app.vision.tally import Scores

RESULT = Result(
    metric="PCK@0.2",
    part="keypoint",
    score=0.5,
    parts={"elbow": 0.5, "wrist": None},
    evaluated="central",
    rounds=3,
    seconds=Durations(total=2.0, rounds=1.0),
    rejected=[],
    clients={"0": ClientFacts(label="front", examples=3, test_examples=1)},
    pck=0.5,
)
SWEEP = Sweep(
    overrides=["seed=1,2"],
    cwd="/",
    directory="/sweep",
    mark="0",
    started=1.5,
    environment=Machine(python="3", system="x", cores=2, packages={"torch": "2"}, commit=None),
    jobs=[Job(number=0, overrides=["seed=1"])],
)
FILES: list[RecordFile] = [
    RESULT,
    SWEEP,
    Best(round=2, score=0.5),
    Launch(overrides=["seed=1"], mark="0", directory="/run"),
    Failure(error="no client", kind="RunFailed", user=False),
    Tracking(mode="offline", url=None, folder="/w", sync="wandb sync /w"),
    PrivacyAccount(epsilon=1.5, delta=1e-5, releases=2, asked={"a": 2}),
]


@pytest.mark.parametrize("record", FILES, ids=lambda record: record.NAME)
def test_what_is_written_is_read_again(record: RecordFile, tmp_path: Path) -> None:
    if isinstance(record, Sweep):  # which has another mark where it was copied to
        record = record.model_copy(update={"directory": tmp_path})
    record.write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [record.NAME]
    assert type(record).read(tmp_path) == record


def test_each_file_has_a_name_of_its_own() -> None:
    names = [HISTORY, *(record.NAME for record in FILES)]
    assert len(set(names)) == len(names) and Best.NAME in names


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("score", 1.5, "score: Input should be less than or equal to 1.000000001; expected the result of a run"),
        ("score", "0.5", "score: Input should be a valid number; expected the result of a run"),
        ("evaluated", "both", "evaluated: Input should be 'central' or 'clients'; expected the result of a run"),
        ("parts", {"hip": -1}, "parts.hip: Input should be greater than or equal to 0; expected the result of a run"),
        ("rejected", [{"round": 1}], "rejected.0.client: Field required; expected the result of a run"),
        ("seconds", {"rounds": math.inf}, "seconds.rounds: Input should be a finite number; expected the result"),
    ],
)
def test_a_damaged_file_is_one_line(key: str, value: Any, said: str, tmp_path: Path) -> None:
    RESULT.write(tmp_path)
    file = tmp_path / Result.NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UserError, match=re.escape(f"{file}: {said}")) as raised:
        Result.read(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_task_s_own_fields_stay_in_a_result(tmp_path: Path) -> None:
    RESULT.write(tmp_path)
    assert json.loads((tmp_path / Result.NAME).read_text())["pck"] == 0.5
    assert dict(Result.read(tmp_path))["pck"] == 0.5


def test_what_was_not_measured_is_none(tmp_path: Path) -> None:
    """A mean over nothing is nan, which JSON has not."""
    measured = Measured.of(Scores(score=math.nan, parts={"hip": math.nan, "knee": 0.25}), loss=math.nan, examples=4)
    assert (measured.score, measured.parts, measured.loss) == (None, {"hip": None, "knee": 0.25}, None)
    Round(round=0, evaluate=Evaluations(central=measured)).append(tmp_path)
    assert read_history(tmp_path)[0].evaluate.central == measured


def test_rounds_share_nothing() -> None:
    first, second = Round(round=0), Round(round=1)
    first.train["loss"] = 1.0
    first.evaluate.central = Measured(score=1.0)
    assert second == Round(round=1)
    with first.timed("train"), first.timed("train"):
        pass
    assert list(first.seconds) == ["train"]


def test_the_headline_is_central_else_the_mean_that_clients_weigh() -> None:
    weighted = Measured(score=0.6, parts={"hip": 0.6}, more={"auc": 0.3})
    clients = MeasuredByClients(score=0.5, parts={"hip": 0.5}, labelled={"hip": 7}, weighted=weighted)
    assert Evaluations(central=Measured(score=0.1), clients=clients).headline.score == 0.1
    found = Evaluations(clients=clients).headline
    assert (found.score, found.parts, found.more, found.labelled) == (0.6, {"hip": 0.6}, {"auc": 0.3}, {"hip": 7})
    assert Evaluations().headline.score is None
    history = [Round(round=0), Round(round=1, evaluate=Evaluations(clients=clients))]
    assert scored(history) == {1: 0.6}


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ({"clients": ["a"], "cosines": [[1.0, 0.0]]}, "expected one row and one column for each of 1 clients"),
        ({"clients": ["a", "b"], "cosines": [[1.0, 0.0]]}, "expected one row and one column for each of 2 clients"),
        ({"clients": ["a"], "cosines": [[2.0]]}, "expected numbers from -1 to 1, or null"),
        ({"clients": ["a"], "cosines": [["x"]]}, "expected numbers from -1 to 1, or null"),
        ({"clients": ["a"], "cosines": 3}, "cosines: expected a list of lists"),
        ({"clients": [1], "cosines": [[1.0]]}, "clients: expected a list of names"),
    ],
)
def test_a_matrix_of_cosines_has_a_row_for_each_client(strategy: Any, said: str, tmp_path: Path) -> None:
    whole = {"round": 1, "strategy": {"clients": ["a", "b"], "cosines": [[1, -0.5], [None, 1.0]]}}
    assert Round.checked(whole, tmp_path).strategy == whole["strategy"]
    with pytest.raises(UserError, match=rf"strategy: .*{said}; expected a run's history"):
        Round.checked({"round": 1, "strategy": strategy}, tmp_path / HISTORY)
