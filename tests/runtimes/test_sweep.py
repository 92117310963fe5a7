"""A sweep goes on past failed jobs, and where it was when it is started again. Jobs are stand-ins that behave as told;
tests/e2e/test_sweeps.py runs real ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from fedgh_app.errors import UserError
from fedgh_app.runs import processes, resumption, storage
from fedgh_app.runs.sweep import Sweep
from fedgh_app.runtimes import sweep

# Does by its seed what a job may do; notes with what it was called.
JOB = """
import json, os, pathlib, signal, subprocess, sys, time
said = dict(item.split("=", 1) for item in sys.argv[1:])
folder = pathlib.Path(said.get("resume", said.get("run_dir")).strip("'"))
with (folder.parent / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
kind = pathlib.Path(os.environ["KINDS"]).read_text().split()[int(folder.name)]
noted = {"overrides": sys.argv[2:], "mark": f"of-{os.getpid()}", "directory": str(folder)}
(folder / "launch.json").write_text(json.dumps(noted))
if kind == "failed":
    sys.exit("fedgh: round 1: too few replies (log: there)")
if kind == "raises":
    raise ValueError("nobody expected this")
if kind == "killed":
    left = {**os.environ, "FEDGH_RUN_MARK": f"of-{os.getpid()}"}
    process = subprocess.Popen(["sleep", "60"], env=left, stderr=subprocess.DEVNULL)
    (folder / "left").write_text(str(process.pid))
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "silent":
    sys.exit(0)
if kind == "long":
    def stop(*_):
        (folder / "stopped").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (folder / "history.jsonl").write_text("{}")
    (folder / "under-way").touch()
    time.sleep(60)
result = {"metric": "PCK@0.2", "score": 0.5, "parts": {}, "evaluated": "central", "rounds": 2, "rejected": []}
(folder / "result.json").write_text(json.dumps({**result, "seconds": {"rounds": 3.0}}))
"""
SEEDS = ["strategy=fedavg", "seed=0,1,2,3,4", "rounds=2"]


@pytest.fixture(autouse=True)
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.setattr(sweep, "FEDGH_RUN", (sys.executable, str(tmp_path / "job.py")))
    monkeypatch.setenv("KINDS", str(tmp_path / "kinds"))


def go(planned: Sweep, kinds: str) -> str:
    """Run every job as `fedgh run -m` does; the status table."""
    folder = planned.directory
    (folder.parent / "kinds").write_text(kinds)
    said = StringIO()
    console = Console(file=said, width=160)
    with planned.held():
        for job in planned.jobs:
            planned.folder(job).mkdir(exist_ok=True)
            sweep.run_job(planned, job, console)
    sweep.print_status(planned, console)
    return said.getvalue()


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_however_a_job_ends_the_others_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    planned = Sweep.planned(tmp_path / "sweep", SEEDS)
    said = go(planned, "ok failed raises killed ok")
    assert [job.status for job in planned.jobs] == ["completed", "failed", "failed", "failed", "completed"]
    reasons = ["round 1: too few replies", "ValueError: nobody expected this", "killed by SIGKILL"]
    assert [job.reason for job in planned.jobs] == [None, *reasons, None]
    assert not planned.completed
    for words in ("seed=3", "failed: killed by SIGKILL", "PCK (%)", "50.0"):
        assert words in said
    assert "rounds=2" not in said  # all jobs share it
    kept = storage.read_json(planned.directory / "sweep.json")
    assert [job["reason"] for job in kept["jobs"]] == [None, *reasons, None]
    assert kept["overrides"] == SEEDS and kept["environment"]["packages"]["flwr"]
    assert "Traceback" in (planned.directory / "2.log").read_text()
    assert "ValueError" in capfd.readouterr().err  # and on the terminal
    left = int((planned.directory / "3" / "left").read_text())
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


def test_a_job_without_a_result_has_failed(tmp_path: Path) -> None:
    planned = Sweep.planned(tmp_path / "sweep", ["seed=0"])
    go(planned, "silent")
    assert planned.jobs[0].status == "failed"
    assert planned.jobs[0].reason == "ended with status 0 and without a result"


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    first = Sweep.planned(folder, SEEDS)
    go(first, "ok failed failed killed ok")
    (folder / "2" / "checkpoints").mkdir()
    (folder / "2" / "checkpoints" / "round-0001.json").write_text("{}")
    (folder / "calls").unlink()
    again = Sweep.planned(folder, SEEDS)  # the same command
    said = go(again, "ok ok ok ok ok")
    assert [call[0] for call in calls(folder)] == [
        f"run_dir='{folder}/1'",
        f"resume='{folder}/2'",
        f"run_dir='{folder}/3'",
    ]
    assert not (folder / "3" / "left").exists()  # nothing of an attempt that cannot go on stays
    assert again.completed
    assert [job.attempts for job in again.jobs] == [1, 2, 2, 2, 1]
    for words in ("failed before, goes on from its checkpoint", "failed before, starts anew", "completed before"):
        assert words in said
    (folder / "calls").unlink()
    assert go(Sweep.read(folder), "failed " * 5).count("skipped") == 10  # a line and a row each
    assert not (folder / "calls").exists()


def test_a_sweep_that_was_killed_knows_what_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    go(Sweep.planned(folder, SEEDS), "ok ok ok failed failed")
    record = storage.read_json(folder / "sweep.json")
    for number, status in enumerate(("running", "running", "completed", "running", "waiting")):
        record["jobs"][number] |= {"status": status, "reason": None}
    storage.write_json(folder / "sweep.json", record)
    (folder / "1" / "result.json").unlink()  # it was killed before its end
    (folder / "2" / "result.json").unlink()  # somebody wants it again
    again = Sweep.read(folder)
    with again.held():
        assert [job.status for job in again.jobs] == ["completed", "interrupted", "waiting", "interrupted", "waiting"]


def test_ctrl_c_ends_the_job_and_is_no_failure(tmp_path: Path) -> None:
    planned = Sweep.planned(tmp_path / "sweep", SEEDS)

    def interrupt() -> None:
        while not (tmp_path / "sweep" / "1" / "under-way").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        go(planned, "ok long ok ok ok")
    assert (tmp_path / "sweep" / "1" / "stopped").exists()  # in its own way
    again = Sweep.read(tmp_path / "sweep")
    assert [job.status for job in again.jobs] == ["completed", "interrupted", "waiting", "waiting", "waiting"]
    assert again.jobs[1].reason is None
    go(again, "ok ok ok ok ok")
    assert again.completed


def test_a_job_that_outlived_its_sweep_is_ended_first(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    planned = Sweep.planned(folder, SEEDS)
    with planned.held():
        pass
    orphan = subprocess.Popen(["sleep", "60"], env={**os.environ, processes.MARK: planned.mark})
    try:
        copy = tmp_path / "copy"
        copy.mkdir()
        (copy / "sweep.json").write_bytes((folder / "sweep.json").read_bytes())
        with Sweep.read(copy).held():
            assert orphan.poll() is None  # the copy's processes are its own
        with Sweep.read(folder).held():
            assert orphan.poll() is not None
    finally:
        orphan.kill()


def test_one_process_holds_a_sweep(tmp_path: Path) -> None:
    planned = Sweep.planned(tmp_path / "sweep", SEEDS)
    with planned.held(), pytest.raises(UserError, match="a sweep is still going on there"), planned.held():
        pass


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=fedavg", "seed=0,1", "rounds=2"], "holds a sweep of other jobs"),
        (["strategy=fedavg", "seed=0,1,2,3,4", "rounds=3"], "holds a sweep of other jobs"),
        ([*SEEDS, "runtime=inprocess"], "holds a sweep of other jobs"),
    ],
)
def test_a_folder_keeps_its_jobs(tmp_path: Path, overrides: list[str], words: str) -> None:
    with Sweep.planned(tmp_path / "sweep", SEEDS).held():
        pass
    with pytest.raises(UserError, match=words):
        Sweep.planned(tmp_path / "sweep", overrides)


def test_what_does_not_make_other_jobs_may_change(tmp_path: Path) -> None:
    planned = Sweep.planned(tmp_path / "sweep", [*SEEDS, "runtime.client_cpus=1"], "nightly")
    with planned.held():
        pass
    (tmp_path / "sweep").rename(tmp_path / "moved")
    again = Sweep.planned(tmp_path / "moved", [*SEEDS, "runtime.client_cpus=2"], "moved")
    expected = ["strategy=fedavg", "seed=4", "rounds=2", "tracking.group=nightly", "runtime.client_cpus=2"]
    assert [item.replace("'", "") for item in again.jobs[4].overrides] == expected
    with pytest.raises(
        UserError, match=r"rounds=9: a sweep that goes on keeps its settings; expected only runtime\.KEY"
    ):
        again.changed(["rounds=9"])
    with pytest.raises(UserError, match="is swept over"):
        again.changed(["keep_checkpoints=1,2"])


def test_runs_of_no_sweep_are_left_alone(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "launch.json", {})
    with pytest.raises(UserError, match="holds runs of no sweep"):
        Sweep.planned(tmp_path, SEEDS)
    with pytest.raises(UserError, match=r"found no sweep\.json"):
        Sweep.read(tmp_path)


A_JOB = {"number": 0, "overrides": [], "status": "failed", "reason": None, "seconds": 1.0, "attempts": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"jobs": [A_JOB | {"overrides": ["hydra.sweeper._target_=os.system"]}]}, "expected overrides of runs"),
        ({"overrides": ["--config-dir=/elsewhere"]}, "expected overrides of runs"),
        ({"jobs": [{"name": 0}]}, r"sweep\.json: jobs\.0\.number: "),
        ({"jobs": [A_JOB | {"number": 7}]}, "expected the numbers 0, 1, 2"),
        ({"mark": None, "jobs": 3}, r"sweep\.json: mark: "),
        ({"environment": {"python": "3"}}, r"sweep\.json: environment\.system: "),
    ],
)
def test_a_record_gives_no_orders(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with Sweep.planned(tmp_path, SEEDS).held():
        pass
    storage.write_json(tmp_path / "sweep.json", storage.read_json(tmp_path / "sweep.json") | change)
    with pytest.raises(UserError, match=words):
        Sweep.read(tmp_path)


def test_a_run_that_still_goes_on_is_not_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    planned = Sweep.planned(folder, ["seed=0,1"])
    with resumption.claimed(folder / "0", []):
        go(planned, "ok ok")
    assert [job.status for job in planned.jobs] == ["failed", "completed"]
    assert "a run is still going on there" in str(planned.jobs[0].reason)
    assert (folder / "0" / "launch.json").exists()


def test_a_full_disk_costs_the_record_not_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    planned = Sweep.planned(tmp_path / "sweep", ["seed=0,1"])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", full)
        go(planned, "ok ok")
    assert planned.completed
    assert "sweep.json: [Errno 28] No space left on device; the sweep goes on" in capfd.readouterr().err
