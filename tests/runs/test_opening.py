"""A run directory opened again."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from written_run import write_run

from fedgh_app.errors import UserError
from fedgh_app.runs import storage
from fedgh_app.runs.opening import load_run


@pytest.fixture
def run(toy: list[str], tmp_path: Path) -> Path:
    write_run(tmp_path / "run", toy)
    return tmp_path / "run"


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_run(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message, message


def test_a_run_comes_back_with_its_trained_weights(toy: list[str], tmp_path: Path) -> None:
    state = write_run(tmp_path / "run", toy)
    run = load_run(tmp_path / "run")
    assert (run.directory, run.spec.name, run.metadata["rounds"]) == (tmp_path / "run", "arm", "3")
    assert run.dataset["input_size"] == [32, 32]
    assert not run.model.training
    for key, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_a_checkpoint_or_a_cluster_goes_by_its_file(toy: list[str], tmp_path: Path) -> None:
    for name in ("checkpoints/round-0002.safetensors", "model.cluster-1.safetensors"):
        write_run(tmp_path / "run", toy, name)
        assert load_run(tmp_path / "run" / name).directory == tmp_path / "run"
    refused(tmp_path / "run", "model.safetensors", "several models", "model.cluster-1.safetensors")


def test_clients_that_trained_alone_are_named(toy: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "run", toy)
    for client in range(5):
        (tmp_path / "run/clients" / str(client)).mkdir(parents=True)
        shutil.copy(tmp_path / "run/model.safetensors", tmp_path / "run/clients" / str(client))
    (tmp_path / "run/model.safetensors").unlink()
    refused(tmp_path / "run", "run/clients/0, ", "and 1 more")


def test_weights_are_the_trained_ones_wherever_the_backbone_started(run: Path) -> None:
    config = OmegaConf.load(run / "config.yaml")
    config.model.weights = "/gone/resnet18.pth"
    OmegaConf.save(config, run / "config.yaml")
    trained, _ = storage.load_model(run)
    assert all(torch.equal(tensor, trained[key]) for key, tensor in load_run(run).model.state_dict().items())


def test_what_is_no_run_is_one_line(run: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such run directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "config.yaml")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "model.safetensors", "config.yaml")
    for content, words in (
        ("a: 1", "has no model"),
        ("- 1", "has no model"),
        ("a: [", "cannot be read"),
        ("", "has no"),
    ):
        (run / "config.yaml").write_text(content)
        refused(run, "config.yaml", words)


def test_a_model_that_is_not_whole_is_refused(toy: list[str], run: Path) -> None:
    file = run / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    refused(run, "not a safetensors file")
    file.write_bytes(whole)
    state, _ = storage.load_model(file)
    state["head.0.weight"] = state["head.0.weight"][:2]
    storage.save_model(file, state, model={}, dataset="arm", rounds=1)
    refused(run, "head.0.weight", "(2, 4, 1, 1)", "(3, 4, 1, 1)")
    del state["head.0.weight"]
    storage.save_model(file, state, model={}, dataset="arm", rounds=1)
    refused(run, "head.0.weight", "nothing")
    file.unlink()
    refused(run, "model.safetensors", "expected a run that ended")


def test_a_config_that_lacks_something_is_one_line(run: Path) -> None:
    file = run / "config.yaml"
    whole = OmegaConf.load(file)
    cases: list[tuple[str, object, str]] = [
        ("model", 3, "model: found 3, expected a group of values"),
        ("sharing", None, "sharing: found None, expected a group of values"),
        ("evaluate", [1], "evaluate: found [1], expected a group of values"),
        ("sharing", {}, "sharing._target_: found None, expected a word"),
        ("seed", "x", "seed: found x, expected a whole number"),
        ("batch_size", None, "batch_size: found None, expected a whole number"),
        ("dataset.input_size", 64, "dataset.input_size: found 64, expected [height, width]"),
        ("dataset.input_size", [64, "wide"], "dataset.input_size: found [64, 'wide'], expected [height, width]"),
    ]
    for key, value, words in cases:
        config = copy.deepcopy(whole)
        OmegaConf.update(config, key, value, merge=False)
        OmegaConf.save(config, file)
        refused(run, "config.yaml", words)
    for key in ("loss", "evaluate", "clustering"):
        OmegaConf.save(OmegaConf.masked_copy(whole, [other for other in whole if other != key]), file)
        refused(run, "config.yaml", f"has no {key}")
    del whole.dataset.input_size
    OmegaConf.save(whole, file)
    refused(run, "config.yaml", "dataset.input_size: found None")


@pytest.mark.parametrize("sharing", ["fedbn", "fedpav"])
def test_a_model_in_parts_is_refused(toy: list[str], tmp_path: Path, sharing: str) -> None:
    write_run(tmp_path / "run", [*toy, f"sharing={sharing}"])
    refused(tmp_path / "run", f"sharing={sharing}", "result.json", "sharing=all")
