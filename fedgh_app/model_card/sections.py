"""The sections of a model card, each as lines of Markdown; its limits are in `limits`."""

from collections.abc import Iterator, Sequence

import numpy as np

from fedgh_app.config.changes import changes, class_of
from fedgh_app.errors import abbreviated
from fedgh_app.model_card.facts import Facts
from fedgh_app.runs.directory import MODEL, PLOTS
from fedgh_app.words import cell, count, percent, plain, plural, short

MOST_CLIENTS = 24  # rows of a table; of more clients it tells quartiles
MOST_PARTS = 40  # of what a data set's head predicts


def title(run: Facts) -> Iterator[str]:
    """What the model is, in a sentence or two."""
    titles = " and ".join(run.specs)
    yield from (f"# {_kind(run)} on {titles}", "")
    if run.failure is not None:
        yield f"> **This run failed:** {plain(run.failure)}. What is here is the model after round {run.rounds}."
        yield ""
    yield from (f"{run.card.what} {_how(run)}", "")


def _kind(run: Facts) -> str:
    if run.alone:
        return "Clients alone" if run.local else "All data in one place"
    return class_of(run.values["strategy"])


def _how(run: Facts) -> str:
    rounds = count(run.rounds, "round")
    if run.alone and not run.local:
        return f"Trained on all data in one place, for {rounds}."
    if run.local:
        return f"Each of {count(len(run.result.clients), 'client')} trained a model of its own, alone, for {rounds}."
    return (
        f"Trained by federated learning: {count(len(run.result.clients), 'client')} kept their images and sent model "
        f"updates, which {class_of(run.values['strategy'])} put together, for {rounds}."
    )


def use(run: Facts) -> Iterator[str]:
    """How to predict with it, and which file to take."""
    yield from ("## How to use it", "")
    files = sorted(run.directory.glob("model*.safetensors"))
    if run.local:
        yield "Each client's model is in `clients/<client>/`, a run directory of its own with its own card."
    elif run.kept:
        yield (
            f"No file here holds a whole model: each client keeps its own {run.kept}. `model.safetensors` has what "
            "they share."
        )
    elif run.clusters:
        yield "There is a model for each cluster of clients; choose the one whose images are most like yours:"
        yield from ("", "| model | trained by |", "|---|---|")
        for cluster, members in run.clusters.items():
            trained = abbreviated([run.client(name) for name in members], most=MOST_CLIENTS)
            yield f"| `model.{cluster}.safetensors` | {cell(trained)} |"
    if files and not run.kept:
        named = "RUN" if files[0].name == MODEL else f"RUN/{files[0].name}"
        yield from () if not run.clusters else ("",)
        yield from ("`RUN` is this directory.", "")
        yield from (line.replace("RUN", named) for line in run.card.usage)
    yield ""


def data(run: Facts) -> Iterator[str]:
    """What it was trained and tested on."""
    yield from ("## Data", "")
    for name, spec in run.specs.items():
        yield from (f"**{name}**: {spec.title}.", "")
        yield f"- {plural(run.result.part).capitalize()}: {abbreviated(spec.predicts, most=MOST_PARTS)}"
        yield f"- Source: {spec.source}"
        yield from (f"- Licence: {spec.licence}", "")
    train, test = (
        sum(getattr(client, key) for client in run.result.clients.values()) for key in ("examples", "test_examples")
    )
    yield from (f"The clients hold {train} training images and {test} test images, which are never trained on.", "")


def training(run: Facts) -> Iterator[str]:
    """How it was trained, and what each client holds."""
    values = run.values
    yield from ("## Training", "")
    told = ("model", "loss", "optimizer") if run.alone else ("strategy", "model", "loss", "optimizer")
    parts = ", ".join(f"{group} {class_of(values[group])}" for group in told)
    yield (
        f"{count(run.rounds, 'round')} of {count(values['local_epochs'], 'local epoch')} in batches of "
        f"{values['batch_size']}, learning rate {values['optimizer']['lr']}, seed {values['seed']}; {parts}."
    )
    yield ""
    changed = changes(values, *(("strategy", "partition") if run.alone else ()))
    yield from ("All else is fedgh's default" + (", but:" if changed else "."), "")
    if changed:
        yield from (*(f"- `{line}`" for line in changed), "")
    if len(run.result.clients) > MOST_CLIENTS:
        yield from _many_clients(run)
        return
    yield f"| client | holds | training images | test images | {short(run.result.metric)} on its own test images |"
    yield "|---|---|--:|--:|--:|"
    for name, client in run.result.clients.items():
        score = percent(run.result.clients_score.get(name))
        cells = (cell(name), cell(client.label), client.examples, client.test_examples, score)
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""


def _many_clients(run: Facts) -> Iterator[str]:
    """What a table with a row for each client would say, by quartiles."""
    clients = run.result.clients.values()
    measured = [score for score in run.result.clients_score.values() if score is not None]
    yield f"| of {len(clients)} clients | smallest | lower quartile | median | upper quartile | largest |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name, key in (("training images", "examples"), ("test images", "test_examples")):
        numbers = [getattr(client, key) for client in clients]
        yield f"| {name} | {' | '.join(f'{value:g}' for value in _quartiles(numbers))} |"
    if measured:
        cells = " | ".join(map(percent, _quartiles(measured)))
        yield f"| {short(run.result.metric)} on its own test images ({len(measured)} measured) | {cells} |"
    yield ""


def results(run: Facts) -> Iterator[str]:
    """What it reaches."""
    result = run.result
    yield from ("## Results", "")
    if result.score is None:
        yield from ("Nothing was measured.", "")
        return
    before = [score for score in result.before.values() if score is not None]
    was = f", before training {percent(sum(before) / len(before))}" if before else ""
    yield from (f"**{result.metric}: {percent(result.score)}**{was}. {_where(run)}", "")
    labelled = run.history[-1].evaluate.headline.labelled if run.history else {}
    yield f"| {result.part} | labelled in test images | before training | after |"
    yield "|---|--:|--:|--:|"
    for name, score in result.parts.items():
        yield f"| {cell(name)} | {labelled.get(name, '-')} | {percent(result.before.get(name))} | {percent(score)} |"
    yield ""
    if worst := run.worst():
        yield from (f"Worst client: {run.client(worst[0])} with {percent(worst[1])} on its own test images.", "")
    yield from run.card.measured
    yield ""
    if (run.directory / PLOTS / "predictions.png").exists():
        yield from ("![Predictions and truth on test images](plots/predictions.png)", "")


def _where(run: Facts) -> str:
    central = run.history[-1].evaluate.central if run.history else None
    if run.result.evaluated == "central" and central is not None:
        return f"Measured by the server on {central.examples} test images, which no client trains on."
    tested = run.result.clients_score
    images = sum(run.result.clients[name].test_examples for name in tested)
    return (
        f"Measured by {count(len(tested), 'client')}, each on its own test images, {images} in all; the mean is "
        "weighted by their number."
    )


def _quartiles(values: Sequence[float]) -> list[float]:
    return [float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]
