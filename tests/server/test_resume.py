"""A run that was killed and resumed is the run that was never stopped, bit for bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from killed import Killed, dying_at, model_of, rounds_of
from recording import run

from fedgh_app.callbacks.plots import Plots
from fedgh_app.client_app import app as client_app
from fedgh_app.config.choices import groups
from fedgh_app.errors import RunFailed, UserError
from fedgh_app.runs import storage
from fedgh_app.runs.checkpoints import newest
from fedgh_app.runs.resumption import resumed
from fedgh_app.runtimes.launcher import launch

# Every strategy, sharing and server optimizer, and each axis with a memory, once. All of them go through the same few
# lines: what is tested is that none leaves out what it remembers. Every strategy with every sharing: below, and slow.
SETTINGS: dict[str, list[str]] = {
    "fedgh": ["strategy=fedgh"],
    "fedaw": ["strategy=fedaw", "selection.fraction=0.6", "server_optimizer=adagrad"],
    "fedcdw": ["strategy=fedcdw"],
    "feddyn": ["strategy=feddyn", "objective=dyn"],
    "gradvac": ["strategy=conflict_averse", "strategy.weighting=GradVac"],
    "krum": ["strategy=krum", "server_optimizer=sgd"],
    "multikrum": ["strategy=multikrum", "objective=prox", "sharing=fedpav"],
    "scaffold": ["strategy=fedavg", "objective=scaffold", "optimizer=sgd", "optimizer.momentum=0"],
    "fedbn-adam": ["strategy=bulyan", "sharing=fedbn", "server_optimizer=adam"],
    "fedpav-oort": [
        *("strategy=fedmedian", "sharing=fedpav"),
        *("selection=oort", "selection.fraction=0.5", "selection.time=declared"),
    ],
    "finch": [
        *("strategy=fedtrimmedavg", "strategy.beta=0.4"),
        *("clustering=finch", "clustering.images=8", "clustering.public.root=${dataset.root}"),
    ],
    "edges-fedbn": ["topology=edge_cloud", "strategy@topology.edge_strategy=fedaw", "sharing=fedbn"],
}


# What a strategy does not do without.
BROUGHT = {"feddyn": ["objective=dyn"], "conflict_averse": ["strategy.weighting=GradVac"]}


@pytest.mark.parametrize("group", ["strategy", "sharing", "server_optimizer"])
def test_every_choice_is_killed_and_resumed(group: str) -> None:
    told = {item for overrides in SETTINGS.values() for item in overrides}
    assert {f"{group}={choice}" for choice in groups()[group]} - told <= {"sharing=all", "server_optimizer=none"}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_same_bits_as_without_the_kill(setting: str, toy: list[str], tmp_path: Path) -> None:
    kill_and_resume([*toy, *SETTINGS[setting]], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sharing", groups()["sharing"])
@pytest.mark.parametrize("strategy", groups()["strategy"])
def test_the_same_bits_for_every_strategy_and_sharing(
    strategy: str, sharing: str, toy: list[str], tmp_path: Path
) -> None:
    kill_and_resume([*toy, f"strategy={strategy}", *BROUGHT.get(strategy, []), f"sharing={sharing}"], tmp_path)


def kill_and_resume(overrides: list[str], tmp_path: Path) -> None:
    """Run it whole; then again, killed twice inside of rounds and resumed."""
    overrides = [*overrides, "rounds=3", "optimizer.lr=0.02", "evaluate.central_every=0"]
    run(overrides, tmp_path / "whole")
    directory = tmp_path / "killed"
    last = 6 if "topology=edge_cloud" in overrides else 2  # the edges' second aggregation is under way
    for server_round, message in ((2, last), (3, 1)):
        where = f"{'resume' if directory.exists() else 'run_dir'}={directory}"
        with pytest.raises(Killed):
            run([*overrides, where], directory, dying_at(server_round, message))
        assert len(rounds_of(directory)) == server_round
    again, _ = run([*overrides, f"resume={directory}"], directory)
    assert model_of(directory) == model_of(tmp_path / "whole")
    assert rounds_of(directory) == rounds_of(tmp_path / "whole")
    assert again.session == 2


@pytest.mark.slow
def test_the_same_bits_whichever_message_the_kill_came_with(toy: list[str], tmp_path: Path) -> None:
    """Trainings and evaluations alike, from the first round's first training on."""
    overrides = [*toy, "sharing=fedbn", "strategy=fedgh", "server_optimizer=sgd", "rounds=2", "optimizer.lr=0.02"]
    _, grid = run(overrides, tmp_path / "whole")
    asked = [message.metadata.message_type for message in grid.sent]
    assert asked.count("train") == 8
    for last in range(asked.index("train") + 1, len(asked) + 1):
        directory = tmp_path / str(last)
        seen = itertools.count(1)

        def answer(message: Message, context: Context, last: int = last, seen: Any = seen) -> Message:
            reply = client_app(message, context)
            if next(seen) == last:
                raise Killed
            return reply

        with pytest.raises(Killed):
            run([*overrides, f"run_dir={directory}"], directory, answer)
        run([*overrides, f"resume={directory}"], directory)
        assert model_of(directory) == model_of(tmp_path / "whole"), (last, asked[last - 1])
        assert rounds_of(directory) == rounds_of(tmp_path / "whole"), (last, asked[last - 1])


def test_a_longer_run_goes_on_where_the_shorter_one_ended(toy: list[str], tmp_path: Path) -> None:
    """By the command's own way, which finds the settings in the run directory; no earlier round is lost."""
    launch([*toy, "strategy=fedaw", "rounds=1"], tmp_path / "run", quiet=True)
    short = rounds_of(tmp_path / "run")
    launch(resumed(tmp_path / "run", ["rounds=2", "resume=elsewhere"]), tmp_path / "run", quiet=True)
    launch([*toy, "strategy=fedaw", "rounds=2"], tmp_path / "whole", quiet=True)
    assert rounds_of(tmp_path / "run") == rounds_of(tmp_path / "whole")
    assert rounds_of(tmp_path / "run")[:2] == short
    assert model_of(tmp_path / "run") == model_of(tmp_path / "whole")
    found, whole = (storage.read_json(tmp_path / name / "result.json") for name in ("run", "whole"))
    assert {**found, "seconds": 0} == {**whole, "seconds": 0}
    assert found["seconds"]["total"] > sum(
        line["seconds"]["total"] for line in storage.read_lines(tmp_path / "run" / "history.jsonl")
    )
    assert "rounds: 2" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_directory_that_is_none_of_ours_is_named(toy: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"resume=.*: found no launch\.json, expected the directory of an earlier"):
        resumed(tmp_path, [])
    with pytest.raises(UserError, match=r"resume=.*: found no checkpoint, expected the directory of a run with keep_"):
        launch([*toy, f"resume={tmp_path}"], tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_run_with_all_its_rounds_is_left_as_it_is(toy: list[str], tmp_path: Path) -> None:
    run([*toy, "rounds=1"], tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"rounds=1: .* has 1 already; expected more to resume it, such as rounds=2"):
        launch([*toy, "rounds=1", f"resume={tmp_path / 'run'}"], tmp_path / "run", quiet=True)
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before


def test_a_run_killed_after_its_last_round_is_finished(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extension of an ended run, too, whose result is still that of the shorter run."""

    def die(*_: object) -> None:
        raise Killed

    launch([*toy, "rounds=1"], tmp_path / "run", quiet=True)
    before = storage.read_json(tmp_path / "run" / "result.json")
    with monkeypatch.context() as patch:
        patch.setattr(Plots, "close", die)
        with pytest.raises(Killed):
            launch(resumed(tmp_path / "run", ["rounds=2"]), tmp_path / "run", quiet=True)
    assert storage.read_json(tmp_path / "run" / "result.json") == before
    rounds, model = rounds_of(tmp_path / "run"), model_of(tmp_path / "run")
    result = launch(resumed(tmp_path / "run", []), tmp_path / "run", quiet=True)
    assert result.rounds == 2
    assert (rounds_of(tmp_path / "run"), model_of(tmp_path / "run")) == (rounds, model)
    with pytest.raises(UserError, match=r"rounds=2: .* has 2 already"):
        newest(tmp_path / "run", 2)


def test_other_clients_than_the_runs_are_refused(toy: list[str], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run([*toy, "rounds=1", "partition=iid"], directory)
    with pytest.raises(UserError, match=r"clients 0, 1, 2 are connected; expected those of the run, 0, 1, 2, 3"):
        run([*toy, "rounds=2", "partition=iid", f"resume={directory}"], directory, count=3)


def test_a_resumption_that_fails_loses_nothing(toy: list[str], tmp_path: Path) -> None:
    """The extension finds too few clients: model, result and checkpoints of the run that had ended are still there."""
    directory = tmp_path / "run"
    run([*toy, "rounds=1"], directory)
    model, result = model_of(directory), (directory / "result.json").read_bytes()
    with pytest.raises(RunFailed, match="round 2: 4 good replies, expected at least 99"):
        run([*toy, "rounds=2", "min_clients=99", f"resume={directory}"], directory)
    assert (model_of(directory), (directory / "result.json").read_bytes()) == (model, result)
    assert newest(directory, 2).name == "round-0001.json"


def test_the_last_good_model_outlives_a_cloud_that_fails(toy: list[str], tmp_path: Path) -> None:
    """An edge without a good reply leaves Krum two edges, which it refuses: the model of before stays the run's."""

    def one_edge_fails(asked: Message, context: Context) -> Message:
        if "draw" in asked.content.config_records.get("config", {}) and context.node_config["partition-id"] == 3:
            raise OSError("no more")
        return client_app(asked, context)

    edges = ["topology=edge_cloud", "topology.edges=3", "strategy=krum", "strategy@topology.edge_strategy=fedaw"]
    with pytest.raises(RunFailed, match="Krum"):
        run([*toy, *edges, "rounds=1"], tmp_path / "run", one_edge_fails)
    assert storage.load_model(tmp_path / "run")[1]["rounds"] == "0"


def test_another_config_than_the_runs_is_refused(toy: list[str], tmp_path: Path) -> None:
    """Also without the launcher, which knows what the run was started with."""
    directory = tmp_path / "run"
    run([*toy, "rounds=1", "optimizer.lr=0.02"], directory)
    with pytest.raises(
        UserError, match=r"optimizer\.lr=0\.001: the run in .* has 0\.02; expected the same to resume it"
    ):
        run([*toy, "rounds=2", f"resume={directory}"], directory)


def test_an_asynchronous_run_goes_on(toy: list[str], tmp_path: Path) -> None:
    """Who trained as it was killed is asked anew, and every client finds the state that the server speaks of."""
    directory = tmp_path / "run"
    overrides = [
        *toy,
        "mode=async",
        "sharing=fedbn",
        "rounds=4",
        "evaluate.central_every=0",
        "+runtime.speeds.3=0.2",
    ]
    for server_round in (2, 3):
        where = f"{'resume' if directory.exists() else 'run_dir'}={directory}"
        with pytest.raises(Killed):
            run([*overrides, where], directory, dying_at(server_round, 2))
    done, _ = run([*overrides, f"resume={directory}"], directory)
    assert [line.round for line in done.history] == [0, 1, 2, 3, 4]
    assert not any(line.rejected for line in done.history)
