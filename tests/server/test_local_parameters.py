"""Federations in which a part of the model, or of the objective, stays with each client."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from conftest import ToyPose
from flwr.app import Context, Message, MessageType
from omegaconf import OmegaConf
from recording import run
from safetensors.numpy import load_file

from fedgh_app.assembly.server import Assembly
from fedgh_app.client import local_state
from fedgh_app.client_app import _site, assembly_at
from fedgh_app.client_app import app as client_app
from fedgh_app.config.compose import compose_config
from fedgh_app.data.site import open_site
from fedgh_app.errors import RunFailed
from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.models.losses import HeatmapCrossEntropy
from fedgh_app.pose.training import evaluate
from fedgh_app.runs import storage
from fedgh_app.server.federation import Federation


def files_of(done: Federation) -> list[Path]:
    return [local_state.file_of(done.settings, done.id, str(number)) for number in range(4)]


def wire_of(messages: list[Message]) -> bytes:
    """All that stands in messages: the arrays' bytes, and every config value and metric as text."""
    parts = []
    for message in messages:
        if message.has_content():
            parts += [array.data for record in message.content.array_records.values() for array in record.values()]
            parts.append(repr((message.content.config_records, message.content.metric_records)).encode())
    return b"".join(parts)


STAYS = {
    "fedbn": (["sharing=fedbn"], lambda key: key.startswith("backbone.1.")),
    "fedpav": (["sharing=fedpav"], lambda key: key.startswith("head.")),
    "feddyn": (["strategy=feddyn", "objective=dyn"], lambda key: False),
    "scaffold": (["objective=scaffold", "optimizer=sgd", "optimizer.momentum=0"], lambda key: False),
}


@pytest.mark.parametrize("kind", STAYS)
def test_what_stays_local_is_in_no_message(kind: str, toy: list[str], home: Path, tmp_path: Path) -> None:
    """Every message of the run, both ways: the keys of the arrays, and the values of whatever a client ever kept."""
    overrides, is_local = STAYS[kind]
    kept: set[bytes] = set()

    def watched(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == MessageType.TRAIN:
            run_id = str(message.content.config_records["config"]["run"])
            for file in (home / "clients" / run_id).iterdir():
                for values in load_file(file).values():
                    # Counts of batches are the same everywhere, and so may be a single number, or rounding around 0.
                    if values.dtype.kind == "f" and values.size > 1 and abs(values).max() > 1e-6:
                        kept.add(values.tobytes())
        return reply

    _, grid = run([*toy, *overrides, "rounds=3", "optimizer.lr=0.02"], tmp_path / "run", watched)
    assert len(kept) >= 3 * 4
    keys = {key for key in ToyPose(3).state_dict() if not is_local(key)}
    models = [m.content["arrays"] for m in grid.sent + grid.received if m.has_content() and "arrays" in m.content]
    assert all(set(model) == keys for model in models)
    assert {len(m.content.array_records) for m in grid.received if m.has_content()} <= {0, 1}
    wire = wire_of(grid.sent + grid.received)
    assert not any(value in wire for value in kept)


@pytest.mark.parametrize(("sharing", "prefix"), [("fedbn", "backbone.1."), ("fedpav", "head.")])
def test_a_client_is_tested_with_its_own_part(sharing: str, prefix: str, toy: list[str], tmp_path: Path) -> None:
    """Each client's loss by hand: the shared arrays and what its file holds, on its own test images."""
    done, _ = run([*toy, f"sharing={sharing}", "rounds=2", "optimizer.lr=0.05"], tmp_path / "run")
    measured = done.history[-1].evaluate.clients.by_client
    shared = done.state_dict()
    own = []
    for number, file in enumerate(files_of(done)):
        local = local_state.LocalState.open(file)
        local.acknowledge(done.accepted[str(number)])
        own.append({key.removeprefix("model:"): tensor for key, tensor in local.accepted.items()})
        assert own[-1] and all(key.startswith(prefix) for key in own[-1])
        model = ToyPose(3)
        model.load_state_dict({**shared, **own[-1]})
        held = open_site(
            Assembly(OmegaConf.create(dict(done.values))).data, {"partition-id": number, "num-partitions": 4}
        )
        batches = Batches(held.examples, held.test, batch_size=32, seed=0, shuffle=False)
        assert evaluate(model, batches, HeatmapCrossEntropy()).loss == pytest.approx(measured[str(number)].loss)
    for one, other in itertools.pairwise(own):
        assert all(not torch.equal(one[key], other[key]) for key in one if one[key].is_floating_point())
    assert done.history[-1].evaluate.central is None


@pytest.mark.parametrize("setting", [["sharing=fedbn"], ["strategy=feddyn", "objective=dyn"]])
def test_a_client_that_restarts_finds_its_state_again(setting: list[str], toy: list[str], tmp_path: Path) -> None:
    """A client whose process remembers nothing goes on from its own file, with the same bits; Flower's context, which
    the process of a simulation holds for every client, stays empty."""

    def forgetful(message: Message, context: Context) -> Message:
        assembly_at.cache_clear()
        _site.cache_clear()
        reply = client_app(message, context)
        assert not context.state
        return reply

    overrides = [*toy, *setting, "rounds=3"]
    whole, _ = run(overrides, tmp_path / "whole")
    restarted, _ = run(overrides, tmp_path / "restarted", forgetful)
    assert {k: a.data for k, a in whole.arrays.items()} == {k: a.data for k, a in restarted.arrays.items()}


def test_a_rejected_training_leaves_the_client_as_it_was(toy: list[str], tmp_path: Path) -> None:
    """Client 1's second reply is spoilt on its way: what that training left on the client must not count."""

    def spoilt(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        config = message.content.config_records.get("config", {})
        if config.get("draw") == 2 and context.node_config["partition-id"] == 1:
            del reply.content["metrics"]
        return reply

    done, _ = run([*toy, "sharing=fedbn", "rounds=2"], tmp_path / "run", spoilt)
    assert [item.client for item in done.history[2].rejected] == ["1"]
    assert done.accepted == {"0": 2, "1": 1, "2": 2, "3": 2}
    kept = local_state.LocalState.open(files_of(done)[1])
    kept.acknowledge(done.accepted["1"])
    first = kept.accepted["model:backbone.1.num_batches_tracked"]
    assert kept.versions[2]["model:backbone.1.num_batches_tracked"] == 2 * first


def test_runs_do_not_find_each_others_state(toy: list[str], tmp_path: Path) -> None:
    overrides = [*toy, "sharing=fedbn", "rounds=1"]
    first, _ = run(overrides, tmp_path / "one")
    second, _ = run(overrides, tmp_path / "two")
    assert first.id != second.id
    assert first.history[1].evaluate.clients == second.history[1].evaluate.clients


def test_nothing_is_kept_where_nothing_stays(toy: list[str], tmp_path: Path, home: Path) -> None:
    done, _ = run([*toy, "objective=prox", "rounds=1"], tmp_path / "run")
    assert not (home / "clients" / done.id).exists()


@pytest.mark.parametrize(("sharing", "fits"), [("all", False), ("fedbn", False), ("fedpav", True)])
def test_a_client_that_predicts_something_else_fits_only_where_the_head_stays(
    sharing: str, fits: bool, home: Path, tmp_path: Path
) -> None:
    config = compose_config([f"sharing={sharing}", "model.head_width=8"])
    assert Assembly(config).federation(tmp_path).any_head() is fits


def test_the_headline_is_the_clients_mean_weighted_by_their_test_images(toy: list[str], tmp_path: Path) -> None:
    run([*toy, "sharing=fedbn", "rounds=1"], tmp_path / "run")
    result = storage.read_json(tmp_path / "run" / "result.json")
    clients = storage.read_lines(tmp_path / "run" / "history.jsonl")[-1]["evaluate"]["clients"]["by_client"]
    total = sum(values["examples"] for values in clients.values())
    assert result["evaluated"] == "clients"
    assert result["pck"] == pytest.approx(sum(v["examples"] * v["score"] for v in clients.values()) / total)
    elbow = [(v["examples"], v["parts"]["elbow"]) for v in clients.values()]
    assert result["per_keypoint"]["elbow"] == pytest.approx(sum(n * value for n, value in elbow) / total)


def test_arrays_that_are_missing_are_named(toy: list[str], tmp_path: Path) -> None:
    def strip(message: Message, context: Context) -> Message:
        if "arrays" in message.content:
            del message.content.array_records["arrays"]["head.0.bias"]
        return client_app(message, context)

    with pytest.raises(RunFailed, match=r"array head\.0\.bias was not sent; expected the 9 shared ones"):
        run([*toy, "rounds=1"], tmp_path / "run", strip)
