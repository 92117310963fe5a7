"""Checkpoints of a run, and how a run goes on from the newest of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Array, ArrayRecord

from fedgh_app.errors import UserError, few, first_line
from fedgh_app.runs import storage
from fedgh_app.runs.history import HISTORY, Round, scored
from fedgh_app.runs.result import RESULT
from fedgh_app.runs.resumption import check_same
from fedgh_app.server.federation import GLOBAL, Federation, tensors

FOLDER, BEST = "checkpoints", "best.json"


class Checkpoint:
    """Keeps the latest models and the best one, each with all that the server carries from round to round.

    Args:
        keep: how many of the latest to keep.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def after_round(self, run: Federation, current: Round) -> None:
        """Write ``checkpoints/round-NNNN.json`` and its tensors, and drop what is neither latest nor best."""
        folder = run.directory / FOLDER
        folder.mkdir(exist_ok=True)
        save(run, folder, _stem(current.round), current.round)
        # Last, so that a checkpoint that was begun but not finished has no such file, and is none.
        storage.save_state(folder / f"{_stem(current.round)}.json", {"round": current.round, **run.server_state()})
        run.settled = dict(run.accepted)
        best = best_round(run.history)
        if best == current.round:
            storage.write_json(folder / BEST, {"round": best, "score": current.evaluate.headline.score})
        kept = {best, *(current.round - back for back in range(self.keep))}
        for file in folder.glob("round-*"):
            if _round_of(file) not in kept:
                file.unlink()

    def close(self, run: Federation, failure: str | None) -> None:
        """Nothing: the last round's is written."""


def best_round(history: Sequence[Round]) -> int | None:
    """The round after training with the best headline, of equals the first; None where nothing was measured."""
    scores = {number: score for number, score in scored(history).items() if number}
    return max(scores, key=lambda number: (scores[number], -number), default=None)


def newest(directory: Path, rounds: int) -> Path:
    """The newest checkpoint of a run directory that can be read.

    Raises UserError where there is none, or the run has ended with ``rounds`` rounds or is beyond them.
    """
    files = sorted((directory / FOLDER).glob("round-*.json"), key=_round_of, reverse=True)
    if not files:
        raise UserError(
            f"resume={directory}: found no checkpoint, expected the directory of a run with keep_checkpoints above 0 "
            "that came to its first one; nothing of this run can be kept"
        )
    file = _newest_whole(files)
    done = _round_of(file)
    # A run that was killed after its last round lacks what it writes at its end.
    if done > rounds or (done == rounds and _ended(directory, rounds)):
        raise UserError(
            f"rounds={rounds}: {directory} has {done} already; "
            f"expected more to resume it, such as rounds={done + rounds}"
        )
    return file


def _newest_whole(files: Sequence[Path]) -> Path:
    """The first of ``files`` that a disk has not damaged; UserError on the very first where it has damaged all."""
    faults = []
    for file in files:
        try:
            storage.load_state(file)
            for tensors_file in file.parent.glob(f"{file.stem}.*safetensors"):
                storage.read_tensors(tensors_file)
        except UserError as fault:
            faults.append(fault)
        else:
            return file
    raise faults[0]


def _ended(directory: Path, rounds: int) -> bool:
    """Whether a run wrote its result, the last of its files, and of no fewer than ``rounds`` rounds."""
    try:
        return int(storage.read_json(directory / RESULT)["rounds"]) >= rounds
    except (OSError, ValueError, KeyError):
        return False


def take_up(run: Federation) -> int:
    """Bring ``run`` to where its newest checkpoint was written; rounds after that never were.

    Returns:
        The checkpoint's round.

    Raises:
        UserError: the run has ended with all its rounds, its clients or its model are others, a file cannot be read.
    """
    file = newest(run.directory, run.settings.rounds)
    check_same(run.values, run.directory)
    try:
        state = storage.load_state(file)
        server_round, of = int(state["round"]), dict(state["cohorts"])
        if of.keys() != run.clients.keys():
            raise UserError(
                f"resume={run.directory}: clients {few(list(run.clients))} are connected; expected those of the run, "
                f"{few(sorted(of))}"
            )
        # Before anything depends on it: a second resumption, of this checkpoint or one before it, is another session.
        state["session"] = int(state["session"]) + 1
        for other in file.parent.glob("round-*.json"):
            with contextlib.suppress(UserError):
                storage.write_json(other, storage.read_json(other) | {"session": state["session"]})
        run.load_server_state(state, _models(run, file, sorted(set(of.values()))))
        lines = storage.read_lines(run.directory / HISTORY)
        run.history = [Round.model_validate(line) for line in lines if line["round"] <= server_round]
    except (UserError, OSError):
        raise
    # Each part takes up a state of its own, which may be another version's, or altered.
    except Exception as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{file}: cannot be taken up ({said}); expected a checkpoint of this run") from error
    with storage.replacing(run.directory / HISTORY) as draft:
        draft.write_text("".join(storage.line(one.model_dump()) for one in run.history))
    return server_round


def save(run: Federation, folder: Path, stem: str, rounds: int) -> list[Path]:
    """Write ``<stem>.safetensors``, or of clusters ``<stem>.<cluster>.safetensors`` each; return the files."""
    written = []
    for cohort, arrays in run.cohorts.models.items() if not run.topology.one_model else [("", run.arrays)]:
        written.append(folder / _name(stem, cohort))
        storage.save_model(
            written[-1],
            tensors(arrays),
            model=run.network,
            dataset=run.spec.name,
            rounds=rounds,
        )
    return written


def _models(run: Federation, file: Path, cohorts: list[str]) -> dict[str, ArrayRecord]:
    """The shared arrays by cohort, in the order in which the run's own model has them."""
    expected = run.cohorts.models[GLOBAL]
    models: dict[str, ArrayRecord] = {}
    for cohort in cohorts if not run.topology.one_model else [""]:
        path = file.with_name(_name(file.stem, cohort))
        stored, _ = storage.load_model(path)
        for key in stored.keys() ^ expected.keys():
            raise UserError(f"{path}: {key} is {'not ' if key in expected else ''}there; expected the model of the run")
        models[cohort] = ArrayRecord({key: Array(stored[key].numpy()) for key in expected})
    return models if not run.topology.one_model else dict.fromkeys(cohorts, models[""])


def _name(stem: str, cohort: str) -> str:
    return ".".join(filter(None, (stem, cohort, "safetensors")))


def _stem(server_round: int) -> str:
    return f"round-{server_round:04d}"


def _round_of(file: Path) -> int:
    return int(file.name.removeprefix("round-").partition(".")[0])
