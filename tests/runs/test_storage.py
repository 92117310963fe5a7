from __future__ import annotations

import json
import math
import os
import stat
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


def test_no_model_and_a_file_that_is_none_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        storage.load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"pickle?")
    with pytest.raises(UserError, match="not a safetensors file"):
        storage.load_model(tmp_path)


@pytest.mark.parametrize("name", ["plain", "with blank", "a=b,c", "it's", "[x]", "back\\slash", "ä{}$"])
def test_any_path_survives_as_an_override(name: str) -> None:
    assert compose_config([f"run_dir={quoted(Path('/tmp') / name)}"]).run_dir == f"/tmp/{name}"
