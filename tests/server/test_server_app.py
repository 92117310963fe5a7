"""Whole federations in this process: what a run leaves behind, and that it repeats."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import misbehaving
from omegaconf import OmegaConf

from fedgh_app.assembly.server import Assembly
from fedgh_app.client_app import app as client_app
from fedgh_app.config.compose import compose_config, join_overrides, quoted
from fedgh_app.errors import RunFailed, UserError
from fedgh_app.grids.inprocess import InProcessGrid
from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.evaluation.tally import scores, tally
from fedgh_app.pose.models.decoding import Dark
from fedgh_app.pose.models.losses import HeatmapCrossEntropy
from fedgh_app.pose.training import evaluate
from fedgh_app.reports.statistics import compare, settings_of
from fedgh_app.runs import storage
from fedgh_app.runtimes.launcher import launch
from fedgh_app.server.federation import Federation
from fedgh_app.server.loop import federate
from fedgh_app.server.registration import wait_for_nodes


def federation(
    overrides: list[str], directory: Path, *, app: Any = client_app, reverse: bool = False, nodes: int = 4
) -> Federation:
    """A federation over ``app``, whose clients may be registered (and so answer) in reverse order."""
    config = compose_config(overrides)
    assembly = Assembly(config)
    assembly.data.deal(nodes)
    node_configs: list[dict[str, Any]] = [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]
    if reverse:
        node_configs.reverse()
    directory.mkdir(parents=True, exist_ok=True)
    grid = InProcessGrid(app, node_configs, {"overrides": join_overrides(overrides)})
    made = assembly.federation(directory)
    federate(made, grid, assembly.callbacks)
    return made


@pytest.fixture(scope="module")
def run(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one small FedGH run."""
    from conftest import TINY

    directory = tmp_path_factory.mktemp("runs") / "one"
    launch([*TINY, "runtime=inprocess"], directory, quiet=True)
    return directory


def test_a_run_directory_holds_all_that_others_rely_on(run: Path) -> None:
    result = storage.read_json(run / "result.json")
    assert 0 <= result["pck"] <= 1
    assert list(result["per_keypoint"]) == ["shoulder", "elbow", "wrist"]
    assert (result["evaluated"], result["rounds"], result["rejected"]) == ("central", 2, [])
    assert 0 < result["seconds"]["rounds"] <= result["seconds"]["total"]
    history = storage.read_lines(run / "history.jsonl")
    assert [line["round"] for line in history] == [0, 1, 2]
    last = history[-1]
    assert last["evaluate"]["central"]["parts"].keys() == result["per_keypoint"].keys()
    assert last["evaluate"]["clients"]["by_client"].keys() == {"0", "1", "2", "3"}
    assert last["strategy"]["clients"] == ["0", "1", "2", "3"]
    assert np.array(last["strategy"]["cosines"]).shape == (4, 4)
    assert sum(last["strategy"]["psi"].values()) == pytest.approx(1)
    assert {"train", "aggregate", "evaluate_clients", "evaluate_central", "total"} <= last["seconds"].keys()
    model_bytes = (run / "model.safetensors").stat().st_size
    assert last["bytes"]["up"] == pytest.approx(4 * model_bytes, rel=0.01)
    assert last["bytes"]["down"] == pytest.approx(8 * model_bytes, rel=0.01)  # to train and to evaluate
    assert (run / "config.yaml").exists()
    assert f"**PCK@0.2: {100 * result['pck']:.1f} %**" in (run / "MODEL_CARD.md").read_text()
    plots = {plot.stem for plot in (run / "plots").glob("*.png")}
    assert {"keypoints", "clients", "cosines", "weights", "predictions", "partition"} <= plots


def test_the_pooled_clients_are_the_central_evaluation(run: Path) -> None:
    """Every test image has one owner, so counting by client and counting at the server give the same numbers."""
    last = storage.read_lines(run / "history.jsonl")[-1]["evaluate"]
    for key in ("score", "loss"):
        assert last["clients"][key] == pytest.approx(last["central"][key], rel=1e-5)
    assert last["clients"]["more"].keys() == {"auc", "heatmap_accuracy"}
    assert last["clients"]["more"] == pytest.approx(last["central"]["more"], rel=1e-5)
    worst = last["clients"]["worst_client"]
    assert last["clients"]["by_client"][worst]["score"] == last["clients"]["worst"]


def test_the_stored_model_is_the_one_that_was_evaluated(run: Path, tmp_path: Path, tiny: list[str]) -> None:
    again = launch([*tiny, f"init={quoted(run)}", "rounds=0"], tmp_path / "again", quiet=True)
    assert again.parts == storage.read_json(run / "result.json")["per_keypoint"]


def test_clients_and_server_read_maps_as_the_config_says(toy: list[str], tmp_path: Path) -> None:
    chosen = [*toy, "rounds=1", "evaluate.decoding=dark", "evaluate.flip_test=true"]
    launch(chosen, tmp_path / "run", quiet=True)
    found = storage.read_lines(tmp_path / "run/history.jsonl")[-1]["evaluate"]
    assert (tmp_path / "run/plots/predictions.png").exists()
    config = compose_config(chosen)
    client = Assembly(config)
    cache, spec = client.data.only.examples, client.data.only.spec
    model = client.build_model(spec)
    model.load_state_dict(storage.load_model(tmp_path / "run/model.safetensors")[0])
    batches = Batches(cache, cache.indices("test"), batch_size=8, seed=0, shuffle=False)
    loss = HeatmapCrossEntropy()
    flip = spec.flip_permutation
    expected = evaluate(model, batches, loss, decode=Dark(logits=True), flip_permutation=flip)
    for where in ("central", "clients"):
        assert found[where]["more"]["auc"] == pytest.approx(
            scores(tally(expected, spec.keypoints, 0.2)).more["auc"], rel=1e-5
        )
        assert found[where]["loss"] == pytest.approx(expected.loss, rel=1e-5)
    for other in (
        evaluate(model, batches, loss, decode=Dark(logits=True)),
        evaluate(model, batches, loss, flip_permutation=flip),
    ):
        assert scores(tally(other, spec.keypoints, 0.2)).more["auc"] != pytest.approx(
            found["central"]["more"]["auc"], rel=1e-5
        )


def test_checkpoints_are_the_latest_and_the_best(toy: list[str], tmp_path: Path) -> None:
    launch([*toy, "rounds=4", "keep_checkpoints=1", "evaluate.clients_every=0"], tmp_path / "run", quiet=True)
    folder = tmp_path / "run" / "checkpoints"
    history = storage.read_lines(tmp_path / "run/history.jsonl")
    values = {line["round"]: line["evaluate"]["central"]["score"] for line in history[1:]}
    best = max(values, key=lambda number: (values[number], -number))
    assert storage.read_json(folder / "best.json") == {"round": best, "score": values[best]}
    kept = {f"round-{number:04d}{kind}" for number in {best, 4} for kind in (".json", ".safetensors")}
    assert {file.name for file in folder.iterdir()} == kept | {"best.json"}
    state = storage.read_json(folder / "round-0004.json")["strategy"]
    assert state["participations"] == {"0": 4, "1": 4, "2": 4, "3": 4}
    assert state["angles"].keys() == {"0", "1", "2", "3"}


def test_a_hook_that_fails_at_the_end_costs_nothing_else(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fedgh_app.plots.curves.part_curves", fail)
    result = launch([*toy, "rounds=1", "tracking=wandb", "tracking.mode=offline"], tmp_path / "run", quiet=True)
    assert result.rounds == 1
    assert storage.read_json(tmp_path / "run/tracking.json")["mode"] == "offline"


def test_a_tracker_that_does_not_start_costs_nothing_else(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def fail(**_: Any) -> None:
        raise wandb.Error("no")

    monkeypatch.setattr(wandb, "init", fail)
    assert launch([*toy, "rounds=1", "tracking=wandb"], tmp_path / "run", quiet=True).rounds == 1


def test_same_seed_same_bits_whatever_order_clients_answer_in(toy: list[str], tmp_path: Path) -> None:
    first = federation(toy, tmp_path / "a")
    second = federation(toy, tmp_path / "b", reverse=True)
    other = federation([*toy, "seed=1"], tmp_path / "c")
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key
    assert any(not torch.equal(tensor, other.state_dict()[key]) for key, tensor in first.state_dict().items())


def test_a_client_that_fails_is_left_out_and_named(toy: list[str], tmp_path: Path) -> None:
    failing = misbehaving(client_app, {(1, "2"): "raises"})
    run = federation([*toy, "evaluate.clients_every=0"], tmp_path / "run", app=failing)
    assert run.history[1].strategy["clients"] == ["0", "1", "3"]
    assert run.history[2].strategy["clients"] == ["0", "1", "2", "3"]
    (rejected,) = storage.read_json(tmp_path / "run/result.json")["rejected"]
    assert (rejected["round"], rejected["client"]) == (1, "2")
    assert "out of memory" in rejected["reason"]


def test_too_few_replies_end_the_run_with_a_line_and_the_last_good_model(toy: list[str], tmp_path: Path) -> None:
    failing = misbehaving(client_app, {(1, name): "raises" for name in "0123"})
    with pytest.raises(RunFailed, match=r"round 1: 0 good replies, expected at least 1 .*client 0: .*out of memory"):
        federation(toy, tmp_path / "run", app=failing)
    state, metadata = storage.load_model(tmp_path / "run")
    assert metadata["rounds"] == "0"
    assert all(torch.isfinite(tensor.float()).all() for tensor in state.values())
    assert not (tmp_path / "run/result.json").exists()
    card = (tmp_path / "run/MODEL_CARD.md").read_text()
    assert "> **This run failed:** round 1: 0 good replies" in card and "the model after round 0." in card


@pytest.mark.parametrize("strategy", ["fedavg", "fedaw", "fedgh", "fedcdw"])
def test_every_strategy_runs_and_learns_something(toy: list[str], tmp_path: Path, strategy: str) -> None:
    result = launch(
        [*toy, f"strategy={strategy}", "rounds=1", "optimizer.lr=0.01", "keep_checkpoints=0"],
        tmp_path / strategy,
        quiet=True,
    )
    history = storage.read_lines(tmp_path / strategy / "history.jsonl")
    weights = history[1]["strategy"]["c"]
    assert set(weights) == {"0", "1", "2", "3"}
    assert ("cosine-distance" in history[1]["train"]["clients"]["0"]) == (strategy == "fedcdw")
    assert history[1]["evaluate"]["central"]["loss"] < history[0]["evaluate"]["central"]["loss"]
    assert result.rejected == []


def test_layerwise_fedgh_and_other_options_run(toy: list[str], tmp_path: Path) -> None:
    options = ["strategy.granularity=layer", "strategy.rescale=norm", "loss=mse", "optimizer=sgd", "schedule=cosine"]
    launch([*toy, *options, "rounds=1", "augmentation=standard", "local_epochs=2"], tmp_path / "run", quiet=True)
    line = storage.read_lines(tmp_path / "run/history.jsonl")[1]
    assert math.isfinite(line["train"]["loss"])
    assert line["train"]["clients"]["0"]["steps"] == 2 * 2  # 16 images, batches of 8, two epochs


def test_a_fraction_of_the_clients_trains(toy: list[str], tmp_path: Path) -> None:
    launch([*toy, "selection.fraction=0.5", "keep_checkpoints=0"], tmp_path / "run", quiet=True)
    lines = storage.read_lines(tmp_path / "run/history.jsonl")
    assert all(len(line["strategy"]["clients"]) == 2 for line in lines[1:])


def test_baselines_go_the_same_way(toy: list[str], tmp_path: Path) -> None:
    rest = [item for item in toy if not item.startswith("runtime=")]
    central = launch([*rest, "runtime=centralised", "rounds=1"], tmp_path / "central", quiet=True)
    assert (central.evaluated, list(central.clients)) == ("central", ["centralised"])
    local = launch([*rest, "runtime=local", "rounds=1"], tmp_path / "local", quiet=True)
    assert local.evaluated == "clients"
    assert local.clients_score.keys() == {"0", "1", "2", "3"}
    sizes = {name: info.test_examples for name, info in local.clients.items()}
    mean = sum(local.clients_score[name] * sizes[name] for name in sizes) / sum(sizes.values())
    assert local.score == pytest.approx(mean)
    assert "Each of 4 clients trained a model of its own" in (tmp_path / "local/MODEL_CARD.md").read_text()
    for folder in ("central", "local/clients/3"):
        assert "fedgh predict RUN" in (tmp_path / folder / "MODEL_CARD.md").read_text()


def test_baselines_take_the_overrides_of_a_sweep(toy: list[str], tmp_path: Path) -> None:
    rest = [item for item in toy if not item.startswith("runtime=")]
    options = ["strategy=fedgh", "strategy.granularity=layer", "partition=dirichlet", "partition.alpha=10", "rounds=1"]
    launch([*rest, *options, "runtime=centralised"], tmp_path / "central", quiet=True)
    local = launch([*rest, *options, "num_clients=2", "runtime=local"], tmp_path / "local", quiet=True)
    assert local.clients_score.keys() == {"0", "1"}
    assert {row["setting"] for row in compare(settings_of([tmp_path]))} == {"centralised", "local"}


def test_a_run_directory_is_never_written_over(run: Path, tiny: list[str]) -> None:
    before = (run / "history.jsonl").read_text()
    with pytest.raises(UserError, match="holds a run already"):
        launch(tiny, run)
    assert (run / "history.jsonl").read_text() == before


def test_another_model_is_no_start(run: Path, tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"init=.*head.* expected shape"):
        launch([*tiny, f"init={quoted(run)}", "model.head_width=16"], tmp_path / "x", quiet=True)


def test_a_number_of_clients_that_does_not_match_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = InProcessGrid(client_app, [{"partition-id": i} for i in range(2)], {})
    monkeypatch.setattr("fedgh_app.server.registration.NODE_WAIT_SECONDS", 0.1)
    assert wait_for_nodes(grid, 2) == [1, 2]
    with pytest.raises(UserError, match=r'num_clients=4: 2 nodes are connected.*"num-supernodes=4"'):
        wait_for_nodes(grid, 4)


def test_missing_data_say_how_to_get_them(toy: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.root=.*nowhere.*fedgh data arm"):
        launch([*toy, f"dataset.root={tmp_path}/nowhere"], tmp_path / "x", quiet=True)
    assert not (tmp_path / "x").exists()


def test_paths_are_absolute_by_the_time_they_reach_flower(
    home: Path, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home / "data")
    launch([*toy, "dataset.root=arm", "rounds=0"], tmp_path / "run", quiet=True)
    config = OmegaConf.load(tmp_path / "run/config.yaml")
    assert config.dataset.root == str((home / "data" / "arm").resolve())
