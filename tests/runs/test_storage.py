from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgh_app.config.compose import compose_config, quoted
from fedgh_app.errors import UserError
from fedgh_app.runs import storage


def test_json_holds_arrays_and_says_null_for_what_is_not_finite(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    storage.write_json(file, {"a": np.array([1.0, math.nan]), "b": np.int64(3), "c": (torch.tensor(2.5), math.inf)})
    assert json.loads(file.read_text()) == {"a": [1.0, None], "b": 3, "c": [2.5, None]}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    storage.write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        storage.write_json(file, {"a": object()})
    with pytest.raises(RuntimeError), storage.replacing(file) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert storage.read_json(file) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut may leave the name with nothing below it."""
    done: list[tuple[bool, bool]] = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: done.append((stat.S_ISDIR(os.fstat(handle).st_mode), file.exists()))
    )
    file = tmp_path / "a.json"
    storage.write_json(file, {"a": 1})
    assert done == [(False, False), (True, True)]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    storage.append_line(file, {"round": 0})
    with file.open("a") as half:
        half.write('{"round": 1')
    assert storage.read_lines(file) == [{"round": 0}]
    assert storage.read_lines(tmp_path / "none") == []


def test_a_model_comes_back_with_what_rebuilds_it(tmp_path: Path) -> None:
    state = {"w": torch.randn(2, 3), "steps": torch.tensor(4), "half": torch.ones(2, dtype=torch.float16)}
    model = compose_config([]).model
    storage.save_model(tmp_path / "model.safetensors", state, model=model, dataset="arm", rounds=7)
    stored, metadata = storage.load_model(tmp_path)
    assert all(torch.equal(stored[key], state[key]) and stored[key].dtype == state[key].dtype for key in state)
    assert json.loads(metadata["model"])["_target_"] == model._target_
    assert (metadata["dataset"], metadata["rounds"]) == ("arm", "7")
    (tmp_path / "other").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


WRITE = """
import sys, torch
from pathlib import Path
from fedgh_app.runs import storage
torch.manual_seed(0)
state = {"w": torch.randn(2, 3), "steps": torch.tensor(4), "half": torch.ones(2, dtype=torch.float16)}
folder = Path(sys.argv[1])
folder.mkdir()
storage.save_model(folder / "model.safetensors", state, model={"head": "ü\\n", "depth": 18}, dataset="arm", rounds=7)
storage.save_state(folder / "round-0001.json", {"axes": {"b": state["w"], "a": {0: state["half"]}}, "round": 1})
"""


def test_equal_models_and_states_are_equal_files(tmp_path: Path) -> None:
    """Whatever order the process has its sets in, and the library its metadata."""
    for seed in range(4):
        command = [sys.executable, "-c", WRITE, str(tmp_path / str(seed))]
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": str(seed)}, check=True)
    first, *others = [{file.name: file.read_bytes() for file in (tmp_path / str(n)).iterdir()} for n in range(4)]
    assert sorted(first) == ["model.safetensors", "round-0001.json", "round-0001.state.safetensors"]
    assert all(other == first for other in others)
    assert storage.load_model(tmp_path / "0")[1] == {
        "dataset": "arm",
        "model": json.dumps({"depth": 18, "head": "ü\n"}),
        "rounds": "7",
    }


def test_no_model_and_a_file_that_is_none_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        storage.load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"pickle?")
    with pytest.raises(UserError, match="not a safetensors file"):
        storage.load_model(tmp_path)


@pytest.mark.parametrize("name", ["plain", "with blank", "a=b,c", "it's", "[x]", "back\\slash", "ä{}$"])
def test_any_path_survives_as_an_override(name: str) -> None:
    assert compose_config([f"run_dir={quoted(Path('/tmp') / name)}"]).run_dir == f"/tmp/{name}"
