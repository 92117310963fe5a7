"""The sections of a model card, each as lines of Markdown; its limits are in `limits`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedgh_app.config.changes import changes, class_of
from fedgh_app.config.combinations import fedbn
from fedgh_app.data import site
from fedgh_app.errors import few
from fedgh_app.model_card.facts import Facts
from fedgh_app.pose.data.records import DatasetSpec
from fedgh_app.reports.markdown import cell, count, percent, plain
from fedgh_app.runs.directory import MODEL, PLOTS

REFERENCES = {
    "box": "the longest side of the person's box",
    "torso": "the length of the person's torso, left shoulder to right hip",
    "head": "the length of the person's head, 0.6 x the diagonal of its box",
}
MOST_CLIENTS = 24  # rows of a table; of more clients it tells quartiles
HEADS = {"heatmap": "heatmaps", "integral": "the expectation of implicit heatmaps"}


def title(run: Facts) -> Iterator[str]:
    """What the model is, in a sentence or two."""
    titles = " and ".join(run.specs)
    yield f"# {_kind(run)} on {titles}"
    yield ""
    if run.failure is not None:
        yield f"> **This run failed:** {plain(run.failure)}. What is here is the model after round {run.rounds}."
        yield ""
    height, width = next(iter(site.members(run.config).values())).dataset.input_size
    head = HEADS.get(str(run.config.model.get("head", "heatmap")), "heatmaps")
    backbone = run.config.model.get("backbone", run.config.model["_target_"])
    yield (
        f"A network ({backbone}, keypoints by {head}) that finds {count(len(run.keypoints()), 'keypoint')} of "
        f"one person in a crop of {width} x {height} pixels around the person's box. {_how(run)}"
    )
    yield ""


def _kind(run: Facts) -> str:
    """The strategy, or the baseline that the run was."""
    if run.alone:
        return "Clients alone" if run.local else "All data in one place"
    return class_of(run.config.strategy)


def _how(run: Facts) -> str:
    """In one sentence, how the model came about."""
    rounds = count(run.rounds, "round")
    if run.alone and not run.local:
        return f"Trained on all data in one place, for {rounds}."
    if run.local:
        return f"Each of {count(len(run.clients), 'client')} trained a model of its own, alone, for {rounds}."
    return (
        f"Trained by federated learning: {count(len(run.clients), 'client')} kept their images and sent model "
        f"updates, which {class_of(run.config.strategy)} put together, for {rounds}."
    )


def use(run: Facts) -> Iterator[str]:
    """How to predict with it, and which file to take."""
    yield from ("## How to use it", "")
    files = sorted(run.directory.glob("model*.safetensors"))
    if run.local:
        yield "Each client's model is in `clients/<client>/`, a run directory of its own with its own card."
    elif not run.whole:
        kept = "BatchNorm layers" if fedbn(run.config) else ", ".join(run.config.sharing.get("modules", ["part"]))
        yield (
            f"No file here holds a whole model: each client keeps its own {kept}. `model.safetensors` has what "
            "they share."
        )
    elif run.clusters:
        yield "There is a model for each cluster of clients; choose the one whose images are most like yours:"
        yield ""
        yield "| model | trained by |"
        yield "|---|---|"
        for cluster, members in run.clusters.items():
            trained = few([run.client(name) for name in members], most=MOST_CLIENTS)
            yield f"| `model.{cluster}.safetensors` | {cell(trained)} |"
    if run.whole and files:
        named = "RUN" if files[0].name == MODEL else f"RUN/{files[0].name}"
        yield from () if not run.clusters else ("",)
        yield from (
            "`RUN` is this directory.",
            "",
            "```",
            f"fedgh predict {named} photo.jpg folder/ clip.mp4 --out found    # skeletons, and keypoints as JSON",
            f"fedgh export {named} --format onnx                              # for machines without PyTorch",
            "```",
            "",
            "```python",
            "from fedgh_app.runs.opening import load_run",
            f'run = load_run("{named}")  # run.model: images (N, 3, h, w) to maps; run.spec.keypoints: their names',
            "```",
        )
    yield ""


def data(run: Facts) -> Iterator[str]:
    """What it was trained and tested on."""
    yield from ("## Data", "")
    for name, spec in run.specs.items():
        yield f"**{name}**: {spec.title}."
        yield ""
        yield f"- Keypoints: {', '.join(spec.keypoints)}"
        yield f"- Source: {spec.source}"
        yield f"- Licence: {spec.licence}"
        yield ""
    train, test = (sum(client[key] for client in run.clients.values()) for key in ("examples", "test_examples"))
    yield f"The clients hold {train} training images and {test} test images, which are never trained on."
    yield ""


def training(run: Facts) -> Iterator[str]:
    """How it was trained, and what each client holds."""
    config = run.config
    yield from ("## Training", "")
    told = ("model", "loss", "optimizer") if run.alone else ("strategy", "model", "loss", "optimizer")
    parts = ", ".join(f"{group} {class_of(config[group])}" for group in told)
    yield (
        f"{count(run.rounds, 'round')} of {count(config.local_epochs, 'local epoch')} in batches of "
        f"{config.batch_size}, learning rate {config.optimizer.lr}, seed {config.seed}; {parts}."
    )
    yield ""
    changed = changes(config, *(("strategy", "partition") if run.alone else ()))
    yield "All else is fedgh's default" + (", but:" if changed else ".")
    yield ""
    if changed:
        yield from (f"- `{line}`" for line in changed)
        yield ""
    if len(run.clients) > MOST_CLIENTS:
        yield from _many_clients(run)
        return
    yield "| client | holds | training images | test images | PCK on its own test images |"
    yield "|---|---|--:|--:|--:|"
    for name, client in run.clients.items():
        pck = percent(run.result["clients_pck"].get(name))
        cells = (cell(name), cell(client["label"]), client["examples"], client["test_examples"], pck)
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""


def _many_clients(run: Facts) -> Iterator[str]:
    """What a table with a row for each client would say, by quartiles."""
    columns = {
        "training images": [client["examples"] for client in run.clients.values()],
        "test images": [client["test_examples"] for client in run.clients.values()],
    }
    measured = [pck for pck in run.result["clients_pck"].values() if pck is not None]
    yield f"| of {len(run.clients)} clients | smallest | lower quartile | median | upper quartile | largest |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name, values in columns.items():
        yield f"| {name} | {' | '.join(f'{value:g}' for value in _quartiles(values))} |"
    if measured:
        cells = " | ".join(map(percent, _quartiles(measured)))
        yield f"| PCK on its own test images ({len(measured)} measured) | {cells} |"
    yield ""


def results(run: Facts) -> Iterator[str]:
    """What it reaches."""
    yield from ("## Results", "")
    if run.result["pck"] is None:
        yield from ("Nothing was measured.", "")
        return
    before = [value for value in run.result["before"].values() if value is not None]
    was = f", before training {percent(sum(before) / len(before))}" if before else ""
    yield f"**{run.metric}: {percent(run.result['pck'])}**{was}. {_where(run)}"
    yield ""
    visible = run.history[-1].evaluate.headline.labelled if run.history else {}
    yield "| keypoint | labelled in test images | before training | after |"
    yield "|---|--:|--:|--:|"
    for name, value in run.result["per_keypoint"].items():
        start = percent(run.result["before"].get(name))
        yield f"| {cell(name)} | {visible.get(name, '-')} | {start} | {percent(value)} |"
    yield ""
    if worst := run.worst():
        yield f"Worst client: {run.client(worst[0])} with {percent(worst[1])} on its own test images."
        yield ""
    for spec in _unlike(run.specs.values()):
        yield (
            f"{spec.headline} is the share of labelled keypoints that lie within {spec.thresholds[0]:g} x "
            f"{REFERENCES[spec.reference]} of the truth{_of(run, spec)}; the headline is the mean over keypoints."
        )
    decoding = run.config.evaluate.get("decoding", "quarter")
    integral = run.config.model.get("head") == "integral"
    read = "by their expectation" if integral else f"by `{decoding}`"
    flip = ", each image also mirrored" if run.config.evaluate.get("flip_test") else ""
    yield f"Keypoints were read off the maps {read}{flip}; people were cropped by their true boxes."
    yield ""
    if (run.directory / PLOTS / "predictions.png").exists():
        yield "![Predictions and truth on test images](plots/predictions.png)"
        yield ""


def _of(run: Facts, spec: DatasetSpec) -> str:
    return f" (on {spec.name})" if len(list(_unlike(run.specs.values()))) > 1 else ""


def _where(run: Facts) -> str:
    """On which images the headline was measured."""
    if run.result["evaluated"] == "central":
        images = run.history[-1].evaluate.headline.examples
        return f"Measured by the server on {images} test images, which no client trains on."
    images = sum(run.clients[name]["test_examples"] for name in run.result["clients_pck"])
    return (
        f"Measured by {count(len(run.result['clients_pck']), 'client')}, each on its own test images, {images} "
        "in all; the mean is weighted by their number."
    )


def _unlike(specs: Any) -> Iterator[DatasetSpec]:
    """Of data sets with the same metric the first."""
    yield from {(spec.headline, spec.reference): spec for spec in reversed(list(specs))}.values()


def _quartiles(values: Sequence[float]) -> list[float]:
    return [float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]
