from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict

from fedgh_app.config.choices import CONF, TERMS, groups
from fedgh_app.config.compose import compose_config, expand_sweep, join_overrides, parse_overrides, split_overrides
from fedgh_app.errors import UserError

# What some choices need beside themselves.
BESIDE = {
    "feddyn": ["objective=dyn"],
    "dyn": ["strategy=feddyn"],
    "scaffold": ["optimizer=sgd", "optimizer.momentum=0"],
    "arm_lspet": ["sharing=fedpav"],
    "integral": ["model.head=integral"],
    "hhd": ["teacher.run=teacher", "model.head=integral", "loss=integral"],
    "central": ["strategy=fedavg", "strategy.equal_weights=true", "model.norm=group"],
    "local": ["model.norm=group"],
    "deployment": ["partition=site"],
}


@pytest.mark.parametrize("group", groups())
def test_every_choice_composes(group: str) -> None:
    for choice in groups()[group]:
        # runtime=local has nothing to do with privacy=local.
        beside = BESIDE.get(choice, []) if (group, choice) != ("runtime", "local") else []
        parted = any(item.startswith("partition=") for item in [*beside, f"{group}="])
        compose_config([f"{group}={choice}", *beside, *([] if parted else ["partition=iid"])])


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=3", "strategy=fedaw", "strategy.seed=7", "+runtime.speeds.3=0.1", "dataset.input_size=[32,64]"],
        ["experiment=arm_quick", "partition=dirichlet", "num_clients=5", "++runtime.server_cpus=1"],
        [
            "topology=edge_cloud",
            "strategy@topology.edge_strategy=fedaw",
            "topology.members={a: [0, 1], b: [2, 3]}",
        ],
    ],
)
def test_it_is_what_hydra_composes(overrides: list[str]) -> None:
    compose_config(overrides[:1])  # what was composed before leaves no trace
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        expected = compose(config_name="config", overrides=overrides)
    for node in (*expected.values(), expected.topology.get("edge_strategy")):
        if isinstance(node, DictConfig):
            with open_dict(node):
                any(node.pop(term, None) for term in TERMS)
    assert compose_config(overrides) == OmegaConf.create(OmegaConf.to_container(expected, resolve=True))


def test_values_and_choices_arrive() -> None:
    config = compose_config(["strategy=fedaw", "rounds=3", "optimizer.lr=0.1", "dataset.input_size=[64,96]"])
    assert config.strategy._target_ == "strategies.FedAW"
    assert (config.rounds, config.optimizer.lr, list(config.dataset.input_size)) == (3, 0.1, [64, 96])


def test_a_value_overrides_an_experiment() -> None:
    assert compose_config(["experiment=arm_quick", "rounds=3"]).rounds == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=fedhg"], ["strategy=fedhg", "fedgh"]),
        (["strategy.granularty=layer"], ["granularty", "granularity"]),
        (["roundz=3"], ["roundz", "rounds"]),
        (["rounds=many"], ["rounds=many", "whole number"]),
        (["rounds=2.5"], ["rounds=2.5", "whole number"]),
        (["seed=1.5"], ["seed=1.5: expected a whole number, not a number"]),
        (["optimizer.lr=fast"], ["optimizer.lr=fast", "a number"]),
        (["rounds=-1"], ["rounds=-1", "at least 0"]),
        (["num_clients=0"], ["num_clients=0", "at least 1"]),
        (["num_clients=two"], ["num_clients=two", "at least 1"]),
        (["seed=-1"], ["seed=-1"]),
        (["round_timeout=0"], ["round_timeout=0"]),
        (["evaluate.decoding=half"], ["evaluate.decoding=half", "argmax, quarter or dark"]),
        (["evaluate.flip_test=2"], ["evaluate.flip_test=2", "true or false"]),
        (["dataset.on_bad=ignore"], ["dataset.on_bad=ignore", "raise or skip"]),
        (["dataset.input_size=[64,60]"], ["dataset.input_size", "multiple of 32"]),
        (["dataset=mpii"], ["partition_by", "partition=iid"]),
        (["model.backbone.x=1"], ["model.backbone"]),
        (["strategy._target_=os.system"], ["os.system", "strategies"]),
        (["+extra._target_=subprocess.run"], ["subprocess.run"]),
        (["+loss.x=[{_target_:os.mkdir,_args_:[a]}]"], ["loss.x[0]", "_target_"]),
        (["+loss.x=[[{a:{_target_:builtins.open}}]]"], ["loss.x[0][0].a"]),
        (["+loss.x._target_=torch.nn.ReLU"], ["loss.x", "_target_"]),
        (["+loss._args_=[1]"], ["loss", "_args_"]),
        (["loss._target_=torch.os.mkdir"], ["torch.os.mkdir", "expected a class"]),
        (["model._target_=torch.hub.load"], ["torch.hub.load", "expected a class"]),
        (["model._target_=torch.load"], ["torch.load"]),
        (["optimizer._target_=torch.optim"], ["torch.optim"]),
        (["strategy._target_=fedgh_app.runs.storage.append_line"], ["append_line"]),
        (["privacy.name=local"], ["privacy.name=local", "expected privacy=CHOICE"]),
        (["~runtime.name"], ["runtime.name=None", "expected runtime=CHOICE"]),
        (["hydra.searchpath=[file:///etc]"], ["hydra.searchpath", "Hydra's own settings stay", "run_dir="]),
        (["+hydra.callbacks.x._target_=os.system"], ["hydra.callbacks", "Hydra's own settings stay"]),
        (["hydra.run.dir=elsewhere"], ["hydra.run.dir=elsewhere", "Hydra's own settings stay", "run_dir="]),
        (["+hydra/launcher=basic"], ["hydra/launcher", "Hydra's own settings stay"]),
        (["run_dir=${oc.env:HOME}"], ["run_dir", "Unsupported interpolation type oc.env"]),
        (["+a='$'", "+b='{oc.env:HOME}'", "+c.d=[{e:x}, '${a}${b}']"], ["c.d.1", "expected one to another key"]),
        (["dataset.input_size=[64,1000000032]"], ["dataset.input_size", "at most 1024"]),
        (["batch_size=1000000000"], ["batch_size=1000000000", "at most 8192"]),
        (["model.head_width=1000000"], ["model.head_width", "at most 4096"]),
        (["rounds=null"], ["rounds=null", "whole number"]),
        (["batch_size=null"], ["batch_size=null"]),
        (["round_timeout=null"], ["round_timeout=null"]),
        (["dataset.input_size=null"], ["dataset.input_size=null"]),
        (["optimizer.lr=null"], ["optimizer.lr=null"]),
        (["runtime.client_cpus=0"], ["runtime.client_cpus=0"]),
        (["tracking.mode=foo"], ["tracking.mode=foo", "offline"]),
        (["init=5"], ["init=5"]),
        (["~partition"], ["partition", "natural"]),
        (["~rounds"], ["rounds"]),
        (["++roundz=3"], ["roundz", "rounds"]),
        (["seed@x=1"], ["seed@x=1", "no group"]),
        (["+seed=1"], ["+seed=1", "expected seed=1"]),
        (["~optimizer.betas=[1,2]"], ["~optimizer.betas", "expected a key that is there"]),
        (["privacy=local", "model.norm=group", "privacy.delta=1"], ["privacy.delta=1", "a number above 0 and below 1"]),
        (["privacy=local", "model.norm=group", "privacy.clipping_norm=inf"], ["privacy.clipping_norm=inf", "above 0"]),
        (["evaluate.clients_fraction=2.0"], ["evaluate.clients_fraction=2.0", "at most 1", "asks nobody"]),
        (["outlier_factor=1.0"], ["outlier_factor=1.0", "above 1, or inf"]),
        (["distillation=server", "distillation.images=2000000"], ["distillation.images", "at most 1000000"]),
        (["topology=edge_cloud", "topology.edge_rounds=0"], ["topology.edge_rounds=0", "at least 1"]),
        (["runtime=deployment", "partition=site", "runtime.node_timeout=-1"], ["runtime.node_timeout=-1", "above 0"]),
        (["+runtime.speeds.a=quick"], ["runtime.speeds.a=quick", "a number"]),
        (["model.debiased=1"], ["model.debiased=1: expected true or false, not a whole number"]),
        (["optimizer.betas=0.9"], ["optimizer.betas=0.9: expected a list, not a number"]),
        (["runtime.speeds=3"], ["runtime.speeds=3: expected a group of values, not a whole number"]),
        (["strategy=fedavg,fedgh"], ["strategy=fedavg,fedgh", "-m"]),
        (["strategy"], ["strategy"]),
        (["strategy=[1"], ["strategy"]),
    ],
)
def test_bad_input_is_one_line_that_names_it(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compose_config(overrides)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_null_experiment_is_none() -> None:
    assert compose_config(["experiment=null"]).rounds == compose_config([]).rounds


def test_client_speeds_take_any_name() -> None:
    config = compose_config(["runtime=inprocess", "+runtime.speeds.3=0.1"])
    assert dict(config.runtime.speeds) == {"3": 0.1}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=1"],
        ["strategy=fedavg,fedgh", "seed=0,1", "rounds=3"],
        ["seed=range(0,6,2)", "optimizer.lr=choice(0.1,1e-3)", "run_dir='a b',c"],
        ["seed=0,1", "strategy=fedgh", "seed=2,3"],
        [
            "+runtime.speeds.3=0.1,1",
            "++runtime.server_cpus=1,2",
            "~optimizer.betas",
            "dataset.input_size=[32,32],[64,64]",
        ],
        ["strategy@topology.edge_strategy=fedaw,krum", "topology.members={a: [0], b: [1]}", "resume=null,x"],
        ["strategy=shuffle(fedavg)", "seed=sort(3,1,2)", "tag=tag(t,choice(a,b))"],
    ],
)
def test_a_sweep_is_expanded_as_hydra_does(overrides: list[str]) -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (expected,) = BasicSweeper.split_arguments(parse_overrides(overrides), None)
    assert expand_sweep(overrides) == expected


def test_a_sweep_over_the_choices_of_a_group() -> None:
    assert expand_sweep(["strategy=glob(fed*, exclude=[fedm*, fedt*])"]) == [
        [f"strategy={name}"] for name in ("fedavg", "fedaw", "fedcdw", "feddyn", "fedgh")
    ]
    with pytest.raises(UserError, match=r"^strategy=glob\(x\*\): fits no choice"):
        expand_sweep(["strategy=glob(x*)"])


def test_a_sweep_over_an_interval_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^optimizer\.lr=interval\(0, *1\): expected values"):
        expand_sweep(["optimizer.lr=interval(0,1)"])


def test_a_sweep_is_expanded_in_the_order_of_hydra() -> None:
    jobs = expand_sweep(["strategy=fedavg,fedgh", "seed=0,1"])
    assert jobs == [
        ["strategy=fedavg", "seed=0"],
        ["strategy=fedavg", "seed=1"],
        ["strategy=fedgh", "seed=0"],
        ["strategy=fedgh", "seed=1"],
    ]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_overrides_survive_the_way_through_one_string(overrides: list[str]) -> None:
    assert split_overrides(join_overrides(overrides)) == overrides


def test_an_open_quote_is_an_error() -> None:
    with pytest.raises(UserError, match="overrides="):
        split_overrides("strategy='fedaw")
