"""Which checkpoint a run goes on after where some are damaged, unfinished or unreadable."""

from __future__ import annotations

from pathlib import Path

import pytest
from killed import Killed, dying_at, model_of, rounds_of
from recording import run

from fedgh_app.errors import UserError
from fedgh_app.runs.checkpoints import newest


@pytest.mark.parametrize("damaged", ["round-0002.json", "round-0002.safetensors", "round-0002.state.safetensors"])
def test_a_damaged_checkpoint_costs_its_round_alone(damaged: str, toy: list[str], tmp_path: Path) -> None:
    overrides = [*toy, "rounds=3", "server_optimizer=adam", "evaluate.central_every=0"]
    run(overrides, tmp_path / "whole")
    directory = tmp_path / "run"
    with pytest.raises(Killed):
        run([*overrides, f"run_dir={directory}"], directory, dying_at(3, 1), keep=2)
    (directory / "checkpoints" / damaged).write_bytes(b"")
    assert newest(directory, 3).name == "round-0001.json"
    run([*overrides, f"resume={directory}"], directory)
    assert (rounds_of(directory), model_of(directory)) == (rounds_of(tmp_path / "whole"), model_of(tmp_path / "whole"))


def test_a_checkpoint_that_was_not_finished_is_none(toy: list[str], tmp_path: Path) -> None:
    """A kill leaves the tensors of round 2 without its JSON, a draft of that, and half a line of history."""
    directory = tmp_path / "run"
    run([*toy, "rounds=3", f"run_dir={directory}"], tmp_path / "whole")
    with pytest.raises(Killed):
        run([*toy, "rounds=3", f"run_dir={directory}"], directory, dying_at(2, 1))
    folder = directory / "checkpoints"
    (folder / "round-0002.safetensors").write_bytes(b"half")
    (folder / ".round-0002.json.1.part").write_text('{"round": 2,')
    with (directory / "history.jsonl").open("a") as history:
        history.write('{"round": 2, "train"')
    again, _ = run([*toy, "rounds=3", f"resume={directory}"], directory)
    assert again.session == 1
    assert model_of(directory) == model_of(tmp_path / "whole")
    assert rounds_of(directory) == rounds_of(tmp_path / "whole")


def test_a_checkpoint_that_cannot_be_read_is_named(toy: list[str], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run([*toy, "rounds=1"], directory)
    file = directory / "checkpoints" / "round-0001.safetensors"
    file.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"round-0001\.safetensors: not a safetensors file"):
        run([*toy, "rounds=2", f"resume={directory}"], directory)


def test_the_newest_checkpoint_is_the_one_of_the_latest_round(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for number in (9999, 10000, 998):
        (tmp_path / "checkpoints" / f"round-{number:04d}.json").write_text("{}")
    assert newest(tmp_path, 10001).name == "round-10000.json"
