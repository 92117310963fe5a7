"""What is refused, with its reason; and every pair of choices that is not, run on a toy model."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import CENTRAL, LOCAL, TINY
from omegaconf import DictConfig
from recording import run

from fedgh_app.config.combinations import REFUSALS
from fedgh_app.config.compose import compose_config, groups
from fedgh_app.errors import UserError
from fedgh_app.runs import storage

FEDDYN = ["strategy=feddyn", "objective=dyn"]
GRADVAC = ["strategy=conflict_averse", "strategy.weighting=GradVac"]
SGD = ["optimizer=sgd", "optimizer.momentum=0"]


TAUGHT = ["teacher=hhd", "teacher.run=teacher", "model.head=integral", "loss=integral"]

# One config that has both choices, for every refusal.
REFUSED = {
    ("teacher=hhd", "model.head=heatmap"): ["teacher=hhd", "teacher.run=teacher"],
    ("teacher=hhd", "dataset with members"): [*TAUGHT, "dataset=arm_lspet", "sharing=fedpav"],
    ("model.head=integral", "a loss of heatmaps"): ["model.head=integral"],
    ("loss=integral", "model.head=heatmap"): ["loss=integral"],
    ("strategy=feddyn", "another objective"): ["strategy=feddyn"],
    ("objective=dyn", "another strategy"): ["objective=dyn"],
    ("strategy.alpha", "another objective.alpha"): [*FEDDYN, "objective.alpha=0.5"],
    ("strategy=feddyn", "mode=async"): [*FEDDYN, "mode=async"],
    ("strategy=feddyn", "topology=edge_cloud"): [*FEDDYN, "topology=edge_cloud"],
    ("strategy=feddyn", "clustering=finch"): [*FEDDYN, "clustering=finch"],
    ("strategy=feddyn", "server_optimizer"): [*FEDDYN, "server_optimizer=sgd"],
    ("objective=scaffold", "optimizer other than plain SGD"): ["objective=scaffold", "optimizer=sgd"],
    ("objective=scaffold", "schedule.final_fraction=0"): [
        *("objective=scaffold", *SGD, "schedule=cosine", "schedule.final_fraction=0.0"),
    ],
    ("objective=scaffold", "mode=async"): ["objective=scaffold", *SGD, "mode=async"],
    ("objective=scaffold", "topology=edge_cloud"): ["objective=scaffold", *SGD, "topology=edge_cloud"],
    ("objective=scaffold", "clustering=finch"): ["objective=scaffold", *SGD, "clustering=finch"],
    ("strategy.weighting=GradVac", "partial participation"): [*GRADVAC, "selection.fraction=0.5"],
    ("strategy.weighting=GradVac", "mode=async"): [*GRADVAC, "mode=async"],
    ("strategy.weighting=GradVac", "clustering=finch"): [*GRADVAC, "clustering=finch"],
    ("strategy=krum, multikrum or bulyan", "clustering=finch"): ["strategy=krum", "clustering=finch"],
    ("strategy=krum, multikrum or bulyan", "a small mode.buffer"): ["strategy=bulyan", "mode=async"],
    ("strategy=krum, multikrum or bulyan", "few topology.edges"): ["strategy=multikrum", "topology=edge_cloud"],
    ("topology.edge_strategy", "feddyn or GradVac"): ["topology=edge_cloud", "strategy@topology.edge_strategy=feddyn"],
    ("strategy=fedcdw", "another topology.edge_strategy"): ["strategy=fedcdw", "topology=edge_cloud"],
    ("runtime=deployment", "another partition than site"): ["runtime=deployment"],
    ("clustering=finch", "topology=edge_cloud"): ["clustering=finch", "topology=edge_cloud"],
    ("clustering=finch", "server_optimizer"): ["clustering=finch", "server_optimizer=adam"],
    ("topology=edge_cloud", "mode=async"): ["topology=edge_cloud", "mode=async"],
    ("distillation.output=outputs", "sharing=fedpav"): ["distillation=server", "sharing=fedpav"],
    ("init", "sharing=fedbn"): ["init=model.safetensors", "sharing=fedbn"],
    ("model.norm=group", "sharing=fedbn"): ["model.norm=group", "sharing=fedbn"],
    ("dataset with members", "sharing other than fedpav"): ["dataset=arm_lspet"],
    ("privacy", "runtime=centralised or local"): [*CENTRAL, "runtime=centralised"],
    ("privacy", "running statistics that are shared"): ["privacy=local"],
    ("privacy", "objective=scaffold"): [*LOCAL, "objective=scaffold", *SGD],
    ("privacy", "selection other than random"): [*CENTRAL, "selection=oort"],
    ("privacy", "strategy=fedcdw"): [
        *(*LOCAL, "topology=edge_cloud", "strategy=fedcdw", "strategy@topology.edge_strategy=fedcdw"),
    ],
    ("privacy=central", "strategy other than fedavg"): ["privacy=central", "model.norm=group", "strategy=fedgh"],
    ("privacy=central", "strategy.equal_weights=false"): [*CENTRAL, "strategy.equal_weights=false"],
    ("privacy=central", "mode=async"): [*CENTRAL, "mode=async"],
    ("privacy=central", "topology=edge_cloud"): [*CENTRAL, "topology=edge_cloud"],
    ("privacy=central", "clustering=finch"): [*CENTRAL, "clustering=finch"],
    ("privacy=central", "distillation=server"): [*CENTRAL, "distillation=server"],
    ("evaluate.clients_every=0", "no model of all clients"): ["sharing=fedbn", "evaluate.clients_every=0"],
}  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.first} with {refusal.second}")
def test_what_means_nothing_is_refused_with_the_reason(refusal: Any) -> None:
    with pytest.raises(UserError) as error:
        compose_config(REFUSED[refusal.first, refusal.second])
    assert str(error.value) == f"{refusal.first} with {refusal.second}: {refusal.reason}"
    assert "\n" not in str(error.value)


def test_only_what_means_nothing_is_refused() -> None:
    assert REFUSED.keys() == {(refusal.first, refusal.second) for refusal in REFUSALS}


# Every axis and its choices, the default first; a choice may need more than its own override.
STRATEGIES = ["fedgh", "fedavg", "fedaw", "fedcdw", "conflict_averse"]
ROBUST = ["krum", "multikrum", "bulyan", "fedmedian", "fedtrimmedavg"]
AXES: dict[str, dict[str, list[str]]] = {
    "strategy": {name: [f"strategy={name}"] for name in STRATEGIES + ROBUST}
    | {
        "fedgh layer": ["strategy=fedgh", "strategy.granularity=layer"],
        "feddyn": FEDDYN,
        "gradvac": GRADVAC,
        "fedavg equal": ["strategy=fedavg", "strategy.equal_weights=true"],
    },
    "server_optimizer": {name: [f"server_optimizer={name}"] for name in ("none", "sgd", "adam", "adagrad")},
    "objective": {name: [f"objective={name}"] for name in ("plain", "prox")}
    | {"scaffold": ["objective=scaffold", *SGD]},
    "sharing": {name: [f"sharing={name}"] for name in ("all", "fedbn", "fedpav")},
    "distillation": {
        "none": [],
        "outputs": ["distillation=server", "distillation.every=1", "distillation.images=8"],
        "features": [
            "distillation=server",
            "distillation.every=1",
            "distillation.images=8",
            "distillation.output=features",
        ],
    },
    "teacher": {"none": [], "hhd": TAUGHT},
    "clustering": {"none": [], "finch": ["clustering=finch", "clustering.images=4"]},
    "topology": {"flat": [], "edge_cloud": ["topology=edge_cloud", "topology.edges=3"]},
    "mode": {"sync": [], "async": ["mode=async", "mode.buffer=3"]},
    "selection": {
        name: [f"selection={name}"] + ([] if name == "random" else ["selection.fraction=0.9"])
        for name in ("random", "power_of_choice", "oort")
    },
    "privacy": {"none": [], "central": CENTRAL, "local": LOCAL},
}

Choice = tuple[str, str]
PARTS = 6  # of the runs of all pairs, for several processes to share


@pytest.mark.parametrize("axis", AXES)
def test_the_pairs_are_of_all_choices_that_there_are(axis: str) -> None:
    told = {item for choices in AXES.values() for overrides in choices.values() for item in overrides}
    default = compose_config([])[axis]
    for choice in groups()[axis]:
        assert f"{axis}={choice}" in told or compose_config([f"{axis}={choice}"])[axis] == default


def overrides_of(choices: dict[str, str]) -> list[str]:
    """The overrides of one choice an axis; FedDyn brings its objective."""
    found = {axis: AXES[axis][choice] for axis, choice in choices.items()}
    if choices.get("strategy") == "feddyn":
        found.pop("objective", None)
    return list(dict.fromkeys(itertools.chain.from_iterable(found.values())))


def nodes_of(axis: str, name: str) -> dict[str, Any]:
    """What a choice changes of a config, by top-level key; of the model, only what differs."""
    config = compose_config([*TINY, "runtime=inprocess", *AXES[axis][name]])
    brought = {
        "feddyn": {"objective"},
        "scaffold": {"optimizer"},
        "hhd": {"model", "loss"},
        "central": {"strategy", "model"},
        "local": {"model"},
    }
    nodes = {key: config[key] for key in {axis, *brought.get(name, set())}}
    if "model" in nodes:
        nodes["model"] = {key: value for key, value in nodes["model"].items() if value != base_config().model[key]}
    return nodes


@functools.cache
def base_config() -> DictConfig:
    return compose_config([*TINY, "runtime=inprocess"])


@functools.cache
def covering_runs() -> list[dict[str, str]]:
    """Few runs in which every allowed pair of choices stands at least once: greedy, from the allowed pairs."""
    choices: list[Choice] = [(axis, name) for axis, names in AXES.items() for name in names]
    pairs = [(one, other) for one, other in itertools.combinations(choices, 2) if one[0] != other[0]]
    nodes = {choice: nodes_of(*choice) for choice in choices}
    compatible = set()
    for one, other in pairs:
        config = base_config().copy()
        for key, node in (*nodes[other].items(), *nodes[one].items()):  # the strategies come first in AXES, and win
            if key == "model":
                config.model.update(node)
            else:
                config[key] = node
        if not any(refusal.applies(config) for refusal in REFUSALS):
            compatible.add((one, other))
    compatible |= {(other, one) for one, other in compatible}
    left = {pair for pair in pairs if pair in compatible}
    runs = []
    while left:
        first = max(left)
        run = dict(first)
        for axis, names in AXES.items():
            if axis in run:
                continue
            fitting = [n for n in names if all(((axis, n), chosen) in compatible for chosen in run.items())]
            gains = {
                name: sum(((axis, name), chosen) in left or (chosen, (axis, name)) in left for chosen in run.items())
                for name in fitting
            }
            if gains:
                run[axis] = max(gains, key=lambda name: gains[name])
        covered = {pair for pair in left if all(run.get(axis) == name for axis, name in pair)}
        assert covered
        left -= covered
        runs.append(run)
    return runs


@pytest.mark.parametrize("part", range(PARTS))
def test_every_allowed_pair_of_choices_runs(
    part: int, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run([*toy, "partition=iid", "rounds=0"], tmp_path / "teacher", count=2)
    runs = covering_runs()
    assert len(runs) >= len(AXES["strategy"]) * 2
    for number in range(part, len(runs), PARTS):
        chosen = runs[number]
        overrides = overrides_of(chosen)
        directory = tmp_path / str(number)
        run([*toy, "partition=iid", *overrides], directory, count=8)
        result = storage.read_json(directory / "result.json")
        central = chosen.get("sharing", "all") == "all" and chosen.get("clustering", "none") == "none"
        assert result["evaluated"] == ("central" if central else "clients"), overrides
        assert math.isfinite(result["pck"]), overrides
        assert result["rejected"] == [], overrides
        history = storage.read_lines(directory / "history.jsonl")
        assert [line["round"] for line in history] == [0, 1, 2], overrides
        assert all(math.isfinite(line["train"]["loss"]) for line in history[1:]), overrides
