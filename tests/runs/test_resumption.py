"""What a run that goes on keeps of its settings, and that nobody else works in its directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedgh_app import server_app
from fedgh_app.errors import UserError
from fedgh_app.runs import processes, storage
from fedgh_app.runs.resumption import claimed, resumed, served


def started(directory: Path, overrides: list[str], of: Path | None = None) -> None:
    """Note, as the launcher does, with what the run in a directory was started."""
    noted = {"overrides": overrides, "mark": "none", "directory": str(of or directory)}
    storage.write_json(directory / "launch.json", noted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("strategy=fedavg", "strategy=fedavg: a run that is resumed keeps its settings; expected only rounds, runtime"),
        ("optimizer.lr=1", "optimizer.lr=1: a run that is resumed"),
        ("seed=3", "seed=3: a run that is resumed"),
        ("runtime=local", "runtime=local: it has other clients than the run; expected simulation or inprocess"),
    ],
)
def test_what_would_make_it_another_run_is_refused(change: str, said: str, tmp_path: Path) -> None:
    started(tmp_path, ["strategy=fedgh"])
    with pytest.raises(UserError, match=re.escape(said)):
        resumed(tmp_path, [change])


def test_changes_replace_what_the_run_was_started_with(tmp_path: Path) -> None:
    before = ["rounds=2", "runtime=inprocess", "runtime.client_cpus=2", "evaluate.clients_every=0", "seed=1"]
    started(tmp_path, before)
    found = resumed(tmp_path, ["rounds=9", "runtime=simulation", "evaluate.central_every=2"])
    kept = ["evaluate.clients_every=0", "seed=1", "rounds=9", "runtime=simulation", "evaluate.central_every=2"]
    assert found == [*kept, f"resume='{tmp_path}'"]


def test_a_run_that_still_goes_on_is_not_resumed(tmp_path: Path) -> None:
    with (
        claimed(tmp_path, ["rounds=2", f"run_dir={tmp_path}"]),
        pytest.raises(UserError, match=r"a run is still going on there; expected one that has ended"),
        claimed(tmp_path, []),
    ):
        pass
    assert storage.read_json(tmp_path / "launch.json")["overrides"] == ["rounds=2"]


def test_two_servers_never_write_into_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with plain `flwr run`, which takes no launcher's claim: the first goes on undisturbed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline() == "held\n"
    (tmp_path / "failure.json").write_text("of the first")
    with pytest.raises(UserError, match="a run is still going on there"), claimed(tmp_path, []):
        pass
    context = Context(1, 1, {}, RecordDict(), {"overrides": f"run_dir={tmp_path}"})
    monkeypatch.setattr(server_app, "federate", lambda *_: pytest.fail("two servers"))
    with pytest.raises(UserError, match=r"run_dir=.*: a run is still going on there; expected one that has ended"):
        server_app.main(None, context)
    assert {file.name for file in tmp_path.iterdir()} == {".lock", ".server.lock", "failure.json"}
    assert (tmp_path / "failure.json").read_text() == "of the first"
    holder.kill()  # however it ends
    holder.communicate()
    with claimed(tmp_path, []), served(tmp_path):
        pass


HOLD = "import sys; from pathlib import Path; from fedgh_app.runs.resumption import served\n"
HOLD += "with served(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_processes_that_a_killed_launcher_left_are_ended(tmp_path: Path) -> None:
    with claimed(tmp_path, []) as mark:
        orphan = subprocess.Popen(["sleep", "60"], env={**os.environ, processes.MARK: mark})
        stranger = subprocess.Popen(["sleep", "60"], env={**os.environ, processes.MARK: "another run's"})
    try:
        with claimed(tmp_path, []):
            assert not list(processes.marked(mark))
            assert stranger.poll() is None
    finally:
        for process in (orphan, stranger):
            process.kill()
            process.wait()


def test_a_copy_of_a_run_ends_nothing_of_the_original(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    with claimed(original, []) as mark:
        process = subprocess.Popen(["sleep", "60"], env={**os.environ, processes.MARK: mark})
        try:
            shutil.copytree(original, copy)
            with claimed(copy, []):
                assert process.poll() is None
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    "planted", ["+hydra.callbacks.x={_target_:joblib.load,filename:x}", "--config-dir=x", "~hydra.job"]
)
def test_a_run_directory_gives_orders_to_nobody(planted: str, tmp_path: Path) -> None:
    """Hydra builds what its own keys describe; a run directory may be somebody else's."""
    started(tmp_path, ["rounds=1", planted])
    with pytest.raises(UserError, match=r"launch\.json: found .*, expected overrides of the run alone"):
        resumed(tmp_path, [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"not valid JSON \(Expecting value: line 1 column 1 \(char 0\)\)"),
        ("[]", "found a JSON list, expected an object"),
        ('{"mark": "x"}', "overrides: Field required; expected what fedgh run wrote"),
        ('{"overrides": 3, "mark": "x", "directory": ""}', "overrides: Input should be a valid list; expected what"),
        ('{"overrides": [3], "mark": "x", "directory": ""}', r"overrides\.0: Input should be a valid string; expected"),
    ],
)
def test_a_damaged_launch_file_is_named(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "launch.json").write_text(content)
    with pytest.raises(UserError, match=rf"launch\.json: {said}"):
        resumed(tmp_path, [])
    with pytest.raises(UserError, match=rf"launch\.json: {said}"), claimed(tmp_path, []):
        pass
