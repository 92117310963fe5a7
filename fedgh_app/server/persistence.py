"""What a federation leaves in its run directory, its models and its result; and how it goes on from a checkpoint."""

import contextlib
from pathlib import Path

from flwr.app import Array, ArrayRecord

from fedgh_app.errors import UserError, abbreviated, first_line
from fedgh_app.runs import storage
from fedgh_app.runs.checkpoints import ServerState, index_files, newest
from fedgh_app.runs.history import Round, read_history, write_history
from fedgh_app.runs.result import ClientFacts, Durations, Result
from fedgh_app.runs.resumption import check_same
from fedgh_app.server.federation import GLOBAL, Federation, tensors


def take_up(federation: Federation) -> int:
    """Bring a federation to where its newest checkpoint was written, and return its round; later ones never were.

    Raises UserError where the run has ended with all its rounds, its clients or its model are others, or a file cannot
    be read.
    """
    directory = federation.directory
    file = newest(directory, federation.settings.rounds)
    check_same(federation.values, directory)
    try:
        state = ServerState.load(file)
        if state.cohorts.keys() != federation.clients.keys():
            raise UserError(
                f"resume={directory}: clients {abbreviated(list(federation.clients))} are connected; expected those of "
                f"the run, {abbreviated(sorted(state.cohorts))}"
            )
        # Before anything depends on it: a second resumption, of this checkpoint or one before it, is another session.
        state.session += 1
        for other in index_files(directory):
            with contextlib.suppress(UserError):
                storage.write_json(other, storage.read_json(other) | {"session": state.session})
        federation.load_server_state(dict(state), _models(federation, file, sorted(set(state.cohorts.values()))))
        federation.history = [each for each in read_history(directory) if each.round <= state.round]
    except (UserError, OSError):
        raise
    # Each part takes up a state of its own, which may be another version's, or altered.
    except Exception as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{file}: cannot be taken up ({said}); expected {ServerState.EXPECTED}") from error
    write_history(directory, federation.history)
    return state.round


def save_models(federation: Federation, folder: Path, stem: str, rounds: int) -> list[Path]:
    """Write ``<stem>.safetensors``, or of clusters ``<stem>.<cluster>.safetensors`` each; return the files."""
    written = []
    models = [("", federation.arrays)] if federation.topology.one_model else federation.cohorts.models.items()
    for cohort, arrays in models:
        written.append(folder / _name(stem, cohort))
        storage.save_model(
            written[-1], tensors(arrays), model=federation.network, dataset=federation.spec.name, rounds=rounds
        )
    return written


def result_of(federation: Federation) -> Result:
    """What ``result.json`` says of a run, as far as it came.

    The headline is central where the server saw test images, else the clients' own.
    """
    history = federation.history or [Round(round=0)]
    last = history[-1]
    headline, clients = last.evaluate.headline, last.evaluate.clients
    clients_score = {name: measured.score for name, measured in clients.by_client.items()} if clients else {}
    return Result(
        metric=federation.data.headline,
        score=headline.score,
        parts=headline.parts,
        before=history[0].evaluate.headline.parts,
        more=headline.more,
        evaluated="central" if last.evaluate.central else "clients",
        rounds=last.round,
        seconds=Durations(**federation.seconds()),
        rejected=[item for current in history for item in current.rejected],
        clients={
            name: ClientFacts(label=info.label, examples=info.examples, test_examples=info.test_examples)
            for name, info in federation.clients.items()
        },
        clients_score=clients_score,
        privacy=last.privacy,
        dataset=federation.data.name,
        part=federation.task.part,
        **federation.task.result(headline, clients_score),
    )


def _models(federation: Federation, file: Path, cohorts: list[str]) -> dict[str, ArrayRecord]:
    """The shared arrays by cohort, in the order in which the run's own model has them."""
    expected = federation.cohorts.models[GLOBAL]
    models: dict[str, ArrayRecord] = {}
    one_model = federation.topology.one_model
    for cohort in [""] if one_model else cohorts:
        path = file.with_name(_name(file.stem, cohort))
        stored, _ = storage.load_model(path)
        for key in stored.keys() ^ expected.keys():
            raise UserError(f"{path}: {key} is {'not ' if key in expected else ''}there; expected the model of the run")
        models[cohort] = ArrayRecord({key: Array(stored[key].numpy()) for key in expected})
    return dict.fromkeys(cohorts, models[""]) if one_model else models


def _name(stem: str, cohort: str) -> str:
    return ".".join(filter(None, (stem, cohort, "safetensors")))
