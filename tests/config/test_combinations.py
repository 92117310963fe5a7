"""What is refused, with its reason; and every pair of choices that is not, run on a toy model."""

from __future__ import annotations

import functools
import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import CENTRAL, LOCAL, TINY
from recording import run

from fedgh_app.config import choices as files
from fedgh_app.config.choices import groups, values_of
from fedgh_app.config.compose import compose_config, composed_of
from fedgh_app.config.refusals import Composed, Rule, rules_of
from fedgh_app.errors import UserError
from fedgh_app.runs import storage

FEDDYN = ["strategy=feddyn", "objective=dyn"]
GRADVAC = ["strategy=conflict_averse", "strategy.weighting=GradVac"]
SGD = ["optimizer=sgd", "optimizer.momentum=0"]


TAUGHT = ["teacher=hhd", "teacher.run=teacher", "model.head=integral", "loss=integral"]

EDGES = "topology=edge_cloud"
GRADVAC_AT_THE_EDGE = ["strategy@topology.edge_strategy=conflict_averse", "topology.edge_strategy.weighting=GradVac"]
SCAFFOLD = ["objective=scaffold", *SGD]
CLIENTS_NEVER = "evaluate.clients_every=0"
ONLY_SGD = (
    "optimizer other than sgd or optimizer.momentum other than 0 or optimizer.weight_decay other than 0 or "
    "optimizer.nesterov other than false"
)

# For every refusal a config that has both.
REFUSED = {
    ("teacher=hhd", "model.head other than integral"): ["teacher=hhd", "teacher.run=teacher"],
    ("teacher=hhd", "dataset.members"): [*TAUGHT, "dataset=arm_lspet", "sharing=fedpav"],
    ("loss=cross_entropy", "model.head=integral"): ["model.head=integral"],
    ("loss=mse", "model.head=integral"): ["model.head=integral", "loss=mse"],
    ("loss=integral", "model.head other than integral"): ["loss=integral"],
    ("strategy=feddyn", "objective other than dyn"): ["strategy=feddyn"],
    ("objective=dyn", "strategy other than feddyn"): ["objective=dyn"],
    ("objective=dyn", "objective.alpha other than strategy.alpha"): [*FEDDYN, "objective.alpha=0.5"],
    ("strategy=feddyn", "mode=async"): [*FEDDYN, "mode=async"],
    ("strategy=feddyn", "topology=edge_cloud"): [*FEDDYN, EDGES],
    ("strategy=feddyn", "clustering=finch"): [*FEDDYN, "clustering=finch"],
    ("strategy=feddyn", "server_optimizer other than none"): [*FEDDYN, "server_optimizer=sgd"],
    ("objective=scaffold", ONLY_SGD): ["objective=scaffold", "optimizer=sgd"],
    ("objective=scaffold", "schedule.final_fraction=0"): [
        *(*SCAFFOLD, "schedule=cosine", "schedule.final_fraction=0.0"),
    ],
    ("objective=scaffold", "mode=async"): [*SCAFFOLD, "mode=async"],
    ("objective=scaffold", "topology=edge_cloud"): [*SCAFFOLD, EDGES],
    ("objective=scaffold", "clustering=finch"): [*SCAFFOLD, "clustering=finch"],
    ("strategy.weighting=GradVac", "selection other than random or selection.fraction other than 1"): [
        *(*GRADVAC, "selection.fraction=0.5"),
    ],
    ("strategy.weighting=GradVac", "mode=async"): [*GRADVAC, "mode=async"],
    ("strategy.weighting=GradVac", "clustering=finch"): [*GRADVAC, "clustering=finch"],
    ("topology.edge_strategy.weighting=GradVac", "topology=edge_cloud"): [EDGES, *GRADVAC_AT_THE_EDGE],
    ("strategy@topology.edge_strategy=feddyn", "topology=edge_cloud"): [
        *(EDGES, "strategy@topology.edge_strategy=feddyn"),
    ],
    ("strategy=fedcdw", "topology=edge_cloud, strategy@topology.edge_strategy other than fedcdw"): [
        *("strategy=fedcdw", EDGES),
    ],
    ("runtime=deployment", "partition other than site"): ["runtime=deployment"],
    ("clustering=finch", "topology=edge_cloud"): ["clustering=finch", EDGES],
    ("clustering=finch", "server_optimizer other than none"): ["clustering=finch", "server_optimizer=adam"],
    ("clustering=finch", CLIENTS_NEVER): ["clustering=finch", CLIENTS_NEVER],
    ("topology=edge_cloud", "mode=async"): [EDGES, "mode=async"],
    ("distillation.output=outputs", "sharing=fedpav"): ["distillation=server", "sharing=fedpav"],
    ("sharing=all", "dataset.members"): ["dataset=arm_lspet"],
    ("sharing=fedbn", "dataset.members"): ["dataset=arm_lspet", "sharing=fedbn"],
    ("sharing=fedbn", "init"): ["init=model.safetensors", "sharing=fedbn"],
    ("sharing=fedbn", "model.norm=group"): ["model.norm=group", "sharing=fedbn"],
    ("sharing=fedbn", CLIENTS_NEVER): ["sharing=fedbn", CLIENTS_NEVER],
    ("sharing=fedpav", CLIENTS_NEVER): ["sharing=fedpav", CLIENTS_NEVER],
    ("privacy=local", "strategy=fedcdw"): [*LOCAL, "strategy=fedcdw"],
    ("privacy=local", "strategy@topology.edge_strategy=fedcdw"): [
        *(*LOCAL, EDGES, "strategy@topology.edge_strategy=fedcdw"),
    ],
    ("privacy=central", "strategy other than fedavg"): ["privacy=central", "model.norm=group", "strategy=fedgh"],
    ("privacy=central", "strategy.equal_weights other than true"): [*CENTRAL, "strategy.equal_weights=false"],
    ("privacy=central", "mode=async"): [*CENTRAL, "mode=async"],
    ("privacy=central", "topology=edge_cloud"): [*CENTRAL, EDGES],
    ("privacy=central", "clustering=finch"): [*CENTRAL, "clustering=finch"],
    ("privacy=central", "distillation=server"): [*CENTRAL, "distillation=server"],
}  # fmt: skip
for name, private in (("central", CENTRAL), ("local", LOCAL)):
    REFUSED |= {
        (f"privacy={name}", "runtime=centralised or local"): [*private, "runtime=centralised"],
        (f"privacy={name}", "model.norm other than group"): [item for item in private if item != "model.norm=group"],
        (f"privacy={name}", "objective=scaffold"): [*private, *SCAFFOLD],
        (f"privacy={name}", "selection other than random"): [*private, "selection=oort"],
    }
for name, factor in (("krum", 2), ("multikrum", 2), ("bulyan", 4)):
    rule, least = [f"strategy={name}", "strategy.num_malicious_nodes=1"], f"< {factor} num_malicious_nodes + 3"
    few = f"{{{', '.join(f'edge{place}: [{place}]' for place in range(factor + 2))}}}"
    REFUSED |= {
        (f"strategy={name}", "clustering=finch"): [*rule, "clustering=finch"],
        (f"strategy={name}", f"mode.buffer {least}"): [*rule, "mode=async", f"mode.buffer={factor + 2}"],
        (f"strategy={name}", f"topology.edges {least}"): [*rule, EDGES, f"topology.edges={factor + 2}"],
        (f"strategy={name}", f"topology.members {least}"): [
            *(*rule, EDGES, f"topology.members={few}", "topology.edges=9"),
        ],
    }  # fmt: skip
RULES = [rule for group, names in groups().items() for name in names for rule in rules_of(group, name)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.first} with {rule.second}")
def test_what_means_nothing_is_refused_with_the_reason(rule: Rule) -> None:
    with pytest.raises(UserError) as error:
        compose_config(REFUSED[rule.first, rule.second])
    assert str(error.value).startswith(f"{rule.first} with ")
    assert str(error.value).endswith(f": {rule.reason}")
    assert "\n" not in str(error.value)


def test_only_what_means_nothing_is_refused() -> None:
    assert len(RULES) == len(REFUSED)
    assert REFUSED.keys() == {(rule.first, rule.second) for rule in RULES}


BUFFER = "the rule needs 2 f + 3 updates, f being strategy.num_malicious_nodes; expected a mode.buffer of at least that"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([*FEDDYN, "mode=async"], "strategy=feddyn with mode=async: FedDyn's server state counts every update once, "
         "against the model of its own round; expected mode=sync"),
        (["strategy=feddyn"], "strategy=feddyn with objective=plain: the server's half of FedDyn corrects what the "
         "clients' half adds; expected objective=dyn"),
        (["strategy=krum", "mode=async"], f"strategy=krum with mode.buffer=2: {BUFFER}"),
        (["dataset=arm_lspet"], "sharing=all with dataset.members: clients with different keypoints cannot share a "
         "head; expected sharing=fedpav"),
        (["privacy=local"], "privacy=local with model.norm=batch: noise makes a variance negative, and running "
         "statistics would be shared; expected model.norm=group, or sharing=fedbn"),
    ],
)  # fmt: skip
def test_the_line_says_what_was_chosen(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        compose_config(overrides)
    assert str(error.value) == told


@pytest.mark.parametrize(
    "overrides",
    [
        ["privacy=local", "sharing=fedbn"],
        ["strategy=krum", "strategy.num_malicious_nodes=1", "mode=async", "mode.buffer=5"],
        ["strategy=bulyan", EDGES, "topology.edges=2", "topology.members={a: [0], b: [1], c: [2]}"],
        [*FEDDYN, "strategy.alpha=0.3"],
        ["objective=scaffold", "optimizer=sgd", "~optimizer.momentum"],
        [*GRADVAC, EDGES],
    ],
)
def test_what_has_a_meaning_is_not_refused(overrides: list[str]) -> None:
    compose_config(overrides)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["strategy=fedavg", "strategy._target_=strategies.FedDyn"], "strategy=feddyn with objective=plain"),
        ([*CENTRAL, "strategy._target_=strategies.FedGH"], "privacy=central with strategy=fedgh"),
        ([*CENTRAL, "strategy._target_=strategies.Mine"], "privacy=central with strategy=strategies.Mine"),
        (["sharing._target_=fedgh_app.vision.sharing.FedBN"], "sharing._target_=.*expected sharing=CHOICE"),
        (["objective._target_=fedgh_app.vision.objectives.Scaffold"], "objective._target_=.*expected objective=CHOICE"),
        (["~dataset.spec"], "dataset.spec: is missing; expected a value, such as arm"),
        (["distillation=server", "~distillation.every"], "distillation.every: is missing"),
        (["+objective.server_part=1"], "objective.server_part=1: expected objective=CHOICE"),
        (["sharing.keeps=modules"], "sharing.keeps=modules: expected sharing=CHOICE"),
        (["strategy.refuses=[]"], "strategy has no key 'refuses'"),
    ],
)
def test_a_class_set_by_its_name_is_held_to_what_its_choice_says(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        compose_config(overrides)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of strategies that a user may add to."""
    shutil.copytree(files.CONF, tmp_path / "conf")
    monkeypatch.setattr(files, "CONF", tmp_path / "conf")
    return tmp_path / "conf" / "strategy"


def test_a_choice_of_ones_own_says_what_it_goes_with(own: Path) -> None:
    refuses = "refuses:\n  - .threshold: [1, 2]\n    objective: plain\n    because: so it is\n"
    (own / "mine.yaml").write_text(f"_target_: strategies.FedGH\nthreshold: 0\n{refuses}")
    compose_config(["strategy=mine"])
    with pytest.raises(
        UserError, match=r"^strategy\.threshold=1 or 2 with objective=plain: so it is; expected another "
    ):
        compose_config(["strategy=mine", "strategy.threshold=2"])


def test_a_value_that_goes_with_nothing_is_refused_alone(own: Path) -> None:
    needs = "needs:\n  - .threshold: 0\n    because: so it is\n    expected: none\n"
    refuses = "refuses:\n  - .scheme: pairwise\n    because: so it is\n    expected: another\n"
    (own / "mine.yaml").write_text(f"_target_: strategies.FedGH\nthreshold: 0\nscheme: pcgrad\n{needs}{refuses}")
    compose_config(["strategy=mine"])
    with pytest.raises(UserError, match=r"^strategy=mine with strategy\.threshold=1: so it is; expected none$"):
        compose_config(["strategy=mine", "strategy.threshold=1"])
    with pytest.raises(UserError, match=r"^strategy\.scheme=pairwise: so it is; expected another$"):
        compose_config(["strategy=mine", "strategy.scheme=pairwise"])


def test_a_choice_that_extends_another_says_what_that_says(own: Path) -> None:
    needs = "needs:\n  - rounds: 3\n    because: so it is\n"
    (own / "mine.yaml").write_text(f"defaults: [feddyn, _self_]\n{needs}")
    with pytest.raises(UserError, match=r"^strategy=mine with objective=plain: .* expected objective=dyn$"):
        compose_config(["strategy=mine"])
    with pytest.raises(UserError, match=r"^strategy=mine with rounds=10: so it is; expected rounds=3$"):
        compose_config(["strategy=mine", "objective=dyn", "strategy.seed=1"])


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("{objectiv: dyn, because: x}", "objectiv is no group and no key"),
        ("{objective: dyn}", "'because'"),
        ("{optimizer.lr: 1, because: x}", "expected"),
        ("objective", "expected conditions"),
    ],
)
def test_an_entry_that_cannot_be_read_names_its_file(own: Path, entry: str, told: str) -> None:
    (own / "mine.yaml").write_text(f"_target_: strategies.FedAvg\nrefuses: [{entry}]\n")
    with pytest.raises(UserError, match=rf"mine\.yaml: refuses: .*{told}") as error:
        compose_config(["strategy=mine"])
    assert "\n" not in str(error.value)


def test_the_values_of_a_choice_are_what_is_built() -> None:
    assert set(values_of("sharing", "fedpav")) == {"_target_", "modules"}
    assert compose_config([]).sharing.keeps == "nothing"


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


@functools.cache
def changed_by(axis: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What a choice changes of a config, by top-level key (of the model, only what differs), and of the choices."""
    composed = composed_of([*TINY, "runtime=inprocess", *AXES[axis][name]])
    brought = {
        "feddyn": {"objective"},
        "scaffold": {"optimizer"},
        "hhd": {"model", "loss"},
        "central": {"strategy", "model"},
        "local": {"model"},
    }
    nodes = {key: composed.config[key] for key in {axis, *brought.get(name, set())}}
    if "model" in nodes:
        usual = base().config.model
        nodes["model"] = {key: value for key, value in nodes["model"].items() if value != usual[key]}
    made = {
        key: choice for key, choice in composed.choices.items() if (key.partition("@")[2] or key).split(".")[0] in nodes
    }
    return nodes, made


@functools.cache
def base() -> Composed:
    return composed_of([*TINY, "runtime=inprocess"])


def both(one: Choice, other: Choice) -> Composed:
    """A config with two choices."""
    config, choices = base().config.copy(), dict(base().choices)
    for nodes, made in (changed_by(*other), changed_by(*one)):  # the strategies come first in AXES, and win
        choices |= made
        for key, node in nodes.items():
            if key == "model":
                config.model.update(node)
            else:
                config[key] = node
    return Composed(config, choices)


@functools.cache
def covering_runs() -> list[dict[str, str]]:
    """Few runs in which every allowed pair of choices stands at least once: greedy, from the allowed pairs."""
    choices: list[Choice] = [(axis, name) for axis, names in AXES.items() for name in names]
    pairs = [(one, other) for one, other in itertools.combinations(choices, 2) if one[0] != other[0]]
    compatible = set()
    for pair in pairs:
        composed = both(*pair)
        if not any(composed.breaks(rule) for rule in composed.rules()):
            compatible.add(pair)
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
