"""``MODEL_CARD.md``: what a run's model is, for whoever finds it without having run it.

After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. It says what the run directory knows, nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from fedgh_app import site
from fedgh_app.combinations import fedbn, keeps_nothing
from fedgh_app.config import compose_config, groups
from fedgh_app.errors import few
from fedgh_app.federation import Round
from fedgh_app.outcome import headline
from fedgh_app.pose.files import replacing
from fedgh_app.pose.records import DatasetSpec

FILE = "MODEL_CARD.md"
# Below this PCK a keypoint is called weak; this far below the mean is a client's; so few test images say little; and by
# as much the last round may gain if training is to count as at its end.
WEAK_PCK, CLIENT_GAP, FEW_IMAGES, STILL_RISING = 0.7, 0.1, 100, 0.01
REFERENCES = {
    "box": "the longest side of the person's box",
    "torso": "the length of the person's torso, left shoulder to right hip",
    "head": "the length of the person's head, 0.6 x the diagonal of its box",
}
MOST_CLIENTS = 24  # rows of a table; of more clients it tells quartiles
HEADS = {"heatmap": "heatmaps", "integral": "the expectation of implicit heatmaps"}
# What a run is told by elsewhere on the card, or what says nothing about its model.
TOLD = ("dataset", "runtime", "tracking", "run_dir", "seed", "rounds", "num_clients", "resume", "keep_checkpoints")


def write(
    directory: Path,
    config: DictConfig,
    result: Mapping[str, Any],
    history: Sequence[Round] = (),
    failure: str | None = None,
) -> None:
    """Write the card of a run directory; see `render`."""
    with replacing(directory / FILE) as draft:
        draft.write_text(render(directory, config, result, history, failure), encoding="utf-8")


def render(
    directory: Path,
    config: DictConfig,
    result: Mapping[str, Any],
    history: Sequence[Round] = (),
    failure: str | None = None,
) -> str:
    """The card as Markdown.

    Args:
        directory: the run directory, whose models and plots it names.
        config: the run's.
        result: as in ``result.json``; of a run that failed, as far as it came.
        history: its rounds; none for clients that were trained alone.
        failure: why it failed.
    """
    card = _Card(directory, config, result, list(history), failure)
    sections = (card.title(), card.use(), card.data(), card.training(), card.results(), card.limits())
    return "\n".join(line for section in sections for line in section) + "\n"


class _Card:
    """The sections of a card, each as lines."""

    def __init__(
        self,
        directory: Path,
        config: DictConfig,
        result: Mapping[str, Any],
        history: list[Round],
        failure: str | None,
    ) -> None:
        self.directory, self.config, self.result, self.failure = directory, config, result, failure
        self.history = history
        self.specs = site.specs(config)
        self.rounds = history[-1].round if history else int(result["rounds"])
        self.metric = site.headline(config)
        self.clients: dict[str, dict[str, Any]] = dict(result["clients"])
        self.clusters = history[-1].clusters if history else {}
        self.local = config.runtime.name == "local"
        self.alone = config.runtime.name in ("local", "centralised")
        self.whole = keeps_nothing(config)

    def title(self) -> Iterator[str]:
        titles = " and ".join(self.specs)
        yield f"# {self.kind()} on {titles}"
        yield ""
        if self.failure is not None:
            yield f"> **This run failed:** {_plain(self.failure)}. What is here is the model after round {self.rounds}."
            yield ""
        height, width = next(iter(site.members(self.config).values())).dataset.input_size
        head = HEADS.get(str(self.config.model.get("head", "heatmap")), "heatmaps")
        backbone = self.config.model.get("backbone", self.config.model["_target_"])
        yield (
            f"A network ({backbone}, keypoints by {head}) that finds {_count(len(self.keypoints()), 'keypoint')} of "
            f"one person in a crop of {width} x {height} pixels around the person's box. {self.how()}"
        )
        yield ""

    def kind(self) -> str:
        """The strategy, or the baseline that the run was."""
        if self.alone:
            return "Clients alone" if self.local else "All data in one place"
        return _class(self.config.strategy)

    def how(self) -> str:
        """In one sentence, how the model came about."""
        rounds = _count(self.rounds, "round")
        if self.alone and not self.local:
            return f"Trained on all data in one place, for {rounds}."
        if self.local:
            return f"Each of {_count(len(self.clients), 'client')} trained a model of its own, alone, for {rounds}."
        return (
            f"Trained by federated learning: {_count(len(self.clients), 'client')} kept their images and sent model "
            f"updates, which {_class(self.config.strategy)} put together, for {rounds}."
        )

    def keypoints(self) -> list[str]:
        return list(dict.fromkeys(name for spec in self.specs.values() for name in spec.keypoints))

    def use(self) -> Iterator[str]:
        yield from ("## How to use it", "")
        files = sorted(self.directory.glob("model*.safetensors"))
        if self.local:
            yield "Each client's model is in `clients/<client>/`, a run directory of its own with its own card."
        elif not self.whole:
            kept = "BatchNorm layers" if fedbn(self.config) else ", ".join(self.config.sharing.get("modules", ["part"]))
            yield (
                f"No file here holds a whole model: each client keeps its own {kept}. `model.safetensors` has what "
                "they share."
            )
        elif self.clusters:
            yield "There is a model for each cluster of clients; choose the one whose images are most like yours:"
            yield ""
            yield "| model | trained by |"
            yield "|---|---|"
            for cluster, members in self.clusters.items():
                trained = few([self.client(name) for name in members], most=MOST_CLIENTS)
                yield f"| `model.{cluster}.safetensors` | {_cell(trained)} |"
        if self.whole and files:
            run = "RUN" if files[0].name == "model.safetensors" else f"RUN/{files[0].name}"
            yield from () if not self.clusters else ("",)
            yield from (
                "`RUN` is this directory.",
                "",
                "```",
                f"fedgh predict {run} photo.jpg folder/ clip.mp4 --out found    # skeletons, and keypoints as JSON",
                f"fedgh export {run} --format onnx                              # for machines without PyTorch",
                "```",
                "",
                "```python",
                "from fedgh_app.runs import load_run",
                f'run = load_run("{run}")  # run.model: images (N, 3, h, w) to maps; run.spec.keypoints: their names',
                "```",
            )
        yield ""

    def data(self) -> Iterator[str]:
        yield from ("## Data", "")
        for name, spec in self.specs.items():
            yield f"**{name}**: {spec.title}."
            yield ""
            yield f"- Keypoints: {', '.join(spec.keypoints)}"
            yield f"- Source: {spec.source}"
            yield f"- Licence: {spec.licence}"
            yield ""
        train, test = (sum(client[key] for client in self.clients.values()) for key in ("examples", "test_examples"))
        yield f"The clients hold {train} training images and {test} test images, which are never trained on."
        yield ""

    def training(self) -> Iterator[str]:
        config = self.config
        yield from ("## Training", "")
        told = ("model", "loss", "optimizer") if self.alone else ("strategy", "model", "loss", "optimizer")
        parts = ", ".join(f"{group} {_class(config[group])}" for group in told)
        yield (
            f"{_count(self.rounds, 'round')} of {_count(config.local_epochs, 'local epoch')} in batches of "
            f"{config.batch_size}, learning rate {config.optimizer.lr}, seed {config.seed}; {parts}."
        )
        yield ""
        changed = differences(config, *(("strategy", "partition") if self.alone else ()))
        yield "All else is fedgh's default" + (", but:" if changed else ".")
        yield ""
        if changed:
            yield from (f"- `{line}`" for line in changed)
            yield ""
        if len(self.clients) > MOST_CLIENTS:
            yield from self.many_clients()
            return
        yield "| client | holds | training images | test images | PCK on its own test images |"
        yield "|---|---|--:|--:|--:|"
        for name, client in self.clients.items():
            pck = _percent(self.result["clients_pck"].get(name))
            cells = (_cell(name), _cell(client["label"]), client["examples"], client["test_examples"], pck)
            yield f"| {' | '.join(map(str, cells))} |"
        yield ""

    def many_clients(self) -> Iterator[str]:
        """What a table with a row for each client would say, by quartiles."""
        columns = {
            "training images": [client["examples"] for client in self.clients.values()],
            "test images": [client["test_examples"] for client in self.clients.values()],
        }
        measured = [pck for pck in self.result["clients_pck"].values() if pck is not None]
        yield f"| of {len(self.clients)} clients | smallest | lower quartile | median | upper quartile | largest |"
        yield "|---|--:|--:|--:|--:|--:|"
        for name, values in columns.items():
            yield f"| {name} | {' | '.join(f'{value:g}' for value in _quartiles(values))} |"
        if measured:
            cells = " | ".join(map(_percent, _quartiles(measured)))
            yield f"| PCK on its own test images ({len(measured)} measured) | {cells} |"
        yield ""

    def results(self) -> Iterator[str]:
        yield from ("## Results", "")
        if self.result["pck"] is None:
            yield from ("Nothing was measured.", "")
            return
        before = [value for value in self.result["before"].values() if value is not None]
        was = f", before training {_percent(sum(before) / len(before))}" if before else ""
        yield f"**{self.metric}: {_percent(self.result['pck'])}**{was}. {self.where()}"
        yield ""
        visible = headline(self.history[-1].evaluate).get("visible", {}) if self.history else {}
        yield "| keypoint | labelled in test images | before training | after |"
        yield "|---|--:|--:|--:|"
        for name, value in self.result["per_keypoint"].items():
            start = _percent(self.result["before"].get(name))
            yield f"| {_cell(name)} | {visible.get(name, '-')} | {start} | {_percent(value)} |"
        yield ""
        if worst := self.worst():
            yield f"Worst client: {self.client(worst[0])} with {_percent(worst[1])} on its own test images."
            yield ""
        for spec in _unlike(self.specs.values()):
            yield (
                f"{spec.headline} is the share of labelled keypoints that lie within {spec.thresholds[0]:g} x "
                f"{REFERENCES[spec.reference]} of the truth{self.of(spec)}; the headline is the mean over keypoints."
            )
        decoding = self.config.evaluate.get("decoding", "quarter")
        integral = self.config.model.get("head") == "integral"
        read = "by their expectation" if integral else f"by `{decoding}`"
        flip = ", each image also mirrored" if self.config.evaluate.get("flip_test") else ""
        yield f"Keypoints were read off the maps {read}{flip}; people were cropped by their true boxes."
        yield ""
        if (self.directory / "plots" / "predictions.png").exists():
            yield "![Predictions and truth on test images](plots/predictions.png)"
            yield ""

    def of(self, spec: DatasetSpec) -> str:
        return f" (on {spec.name})" if len(list(_unlike(self.specs.values()))) > 1 else ""

    def where(self) -> str:
        """On which images the headline was measured."""
        if self.result["evaluated"] == "central":
            images = self.history[-1].evaluate["central"]["examples"]
            return f"Measured by the server on {images} test images, which no client trains on."
        images = sum(self.clients[name]["test_examples"] for name in self.result["clients_pck"])
        return (
            f"Measured by {_count(len(self.result['clients_pck']), 'client')}, each on its own test images, {images} "
            "in all; the mean is weighted by their number."
        )

    def worst(self) -> tuple[str, float] | None:
        known = {name: pck for name, pck in self.result["clients_pck"].items() if pck is not None}
        return min(known.items(), key=lambda pair: (pair[1], pair[0])) if len(known) > 1 else None

    def limits(self) -> Iterator[str]:
        yield from ("## Limits", "")
        titles = "; ".join(spec.title for spec in self.specs.values())
        yield f"- It was trained and tested on this alone: {titles}. Nothing else was tried."
        if all(spec.source == "generated" for spec in self.specs.values()):
            yield "- Those images are drawn by a program; it has never seen a photograph."
        for spec in self.specs.values():
            if "no restriction" not in spec.licence:
                yield f"- The data are licensed for: {spec.licence}. That binds whoever uses or passes on this model."
        yield (
            "- The numbers above are for one person at a time, in a true box. A detector's boxes, and whole images "
            "without boxes, give worse keypoints."
        )
        weak = {name: pck for name, pck in self.result["per_keypoint"].items() if pck is not None and pck < WEAK_PCK}
        if len(weak) == len(self.result["per_keypoint"]) > 1:
            yield f"- Every keypoint is weak: {self.metric} below {_percent(WEAK_PCK)}."
        elif weak:
            worst_first = sorted(weak.items(), key=lambda pair: pair[1])
            named = ", ".join(f"{name} ({_percent(pck)})" for name, pck in worst_first)
            yield f"- Weak keypoints, by {self.metric}: {named}."
        unknown = [name for name in self.keypoints() if self.result["per_keypoint"].get(name) is None]
        if unknown:
            yield f"- Not measured, for want of labelled test images: {', '.join(unknown)}."
        worst, pck = self.worst(), self.result["pck"]
        if worst and pck is not None and pck - worst[1] > CLIENT_GAP:
            yield (
                f"- It does not serve all clients alike: {self.client(worst[0])} has {_percent(worst[1])}, where all "
                f"together have {_percent(pck)}."
            )
        tests = sum(client["test_examples"] for client in self.clients.values())
        if tests < FEW_IMAGES:
            yield f"- {_count(tests, 'test image')}: the numbers are rough."
        untested = [self.client(name) for name, client in self.clients.items() if not client["test_examples"]]
        if untested:
            yield f"- Without test images of their own: {few(untested)}."
        measured = [found for this in self.history if (found := headline(this.evaluate).get("pck")) is not None]
        if len(measured) > 1 and measured[-1] - measured[-2] > STILL_RISING:
            yield (
                f"- Training was not at its end: the last evaluation before had {_percent(measured[-2])}, the last has "
                f"{_percent(measured[-1])}."
            )
        if rejected := len(self.result["rejected"]):
            yield f"- Replies of clients that were rejected: {rejected}; `history.jsonl` says why."
        yield "- One run with one seed; another seed gives other numbers."
        if not self.alone:
            yield f"- {self.privacy()}"
        yield "- Not tested for any use in which a wrong keypoint can hurt somebody."

    def privacy(self) -> str:
        """What the model may tell of the images it was trained on."""
        spent = self.result.get("privacy")
        if not spent:
            return (
                "Updates reached the server as they are, without secure aggregation or differential privacy: the "
                "model may tell something of the images it was trained on."
            )
        guarantee = (
            f"ε = {spent['epsilon']:.3g} at δ = {spent['delta']:g} for a client with all its images, over "
            f"{_count(spent['releases'], 'update')} of it"
        )
        if self.config.privacy.name == "local":
            return (
                f"Local differential privacy: {guarantee}. Every client's updates had noise before they left it; its "
                "counts and losses had not."
            )
        return (
            f"Central differential privacy: {guarantee}. It covers the model, not `history.jsonl` and `result.json`; "
            "the server saw the updates as they are."
        )

    def client(self, name: str) -> str:
        """A client by its name and what it holds."""
        label = _plain(str(self.clients.get(name, {}).get("label", name)))
        return label if label in (name, f"client {name}") else f"{_plain(name)} ({label})"


def differences(config: DictConfig, *without: str) -> list[str]:
    """What a config says otherwise than the default one, but for some keys: ``key=value``, and a choice by its name."""
    changed: list[str] = []
    usual = _defaults()
    for key in map(str, config):
        node = config[key]
        if key in (*TOLD, *without) or node == usual.get(key):
            continue
        if key not in usual or not isinstance(node, type(usual[key])):  # a run of another version
            changed.append(f"{key}={node}")
        elif key in groups():
            changed += _group(key, node, usual[key], config)
        elif isinstance(node, DictConfig):
            changed += [f"{key}.{name}={node[name]}" for name in map(str, node) if node[name] != usual[key].get(name)]
        else:
            changed.append(f"{key}={node}")
    return changed


def _group(key: str, node: DictConfig, usual: DictConfig, config: DictConfig) -> list[str]:
    """Such as ``objective=Prox (mu=0.1)``: values are told that the default choice has not, or has otherwise.

    Those that follow from the run's seed and data set are not.
    """
    follow = {"seed": config.seed, "partition_by": config.dataset.natural_attribute}
    names = [name for name in map(str, node) if not name.startswith("_") and name != "name"]
    values = {name: node[name] for name in names if node[name] not in (usual.get(name), follow.get(name))}
    if not values and _class(node) == _class(usual):
        return []
    told = ", ".join(f"{name}={_value(value)}" for name, value in values.items())
    return [f"{key}={_class(node)}" + (f" ({told})" if told else "")]


def _value(value: Any) -> str:
    """A value of the config; a choice that stands inside another by its name."""
    return _class(value) if isinstance(value, DictConfig) else str(value)


def _class(node: DictConfig) -> str:
    """A choice by the class it builds, else by its name."""
    return str(node.get("_target_") or node.get("name") or node.get("spec") or "none").rpartition(".")[2]


@functools.cache
def _defaults() -> DictConfig:
    return compose_config([])


def _unlike(specs: Any) -> Iterator[DatasetSpec]:
    """Of data sets with the same metric the first."""
    yield from {(spec.headline, spec.reference): spec for spec in reversed(list(specs))}.values()


def _quartiles(values: Sequence[float]) -> list[float]:
    return [float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _count(number: int, one: str) -> str:
    return f"{number} {one}{'' if number == 1 else 's'}"


def _plain(text: str) -> str:
    """A text of somebody else's in a line of Markdown."""
    return " ".join(text.split()).rstrip(".")


def _cell(text: object) -> str:
    """The same in a cell of a table."""
    return _plain(str(text)).replace("|", "\\|")
