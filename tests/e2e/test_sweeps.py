"""A sweep of real runs that is killed as a power cut would, and goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import psutil
import pytest

from fedgh_app.runs import storage
from fedgh_app.runtimes.launcher import launch

FEDGH = str(Path(sysconfig.get_path("scripts")) / "fedgh")


def follow(process: subprocess.Popen[bytes], job: Path) -> None:
    """Wait until a job has ended its first round."""
    end = time.monotonic() + 400
    while not storage.read_lines(job / "history.jsonl")[1:]:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_is_stopped_and_killed_goes_on_where_it_was(tiny: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    overrides = [item for item in tiny if item not in ("rounds=2", "tracking=none")]
    overrides += ["rounds=6", "tracking.mode=offline", "evaluate.clients_every=0"]
    command = [FEDGH, "run", "-m", "strategy=fedavg,fedaw", f"run_dir={sweep}", *overrides]

    stopped = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0)
    try:
        follow(stopped, sweep / "0")
        stopped.send_signal(signal.SIGINT)
        _, said = stopped.communicate(timeout=120)
    finally:
        stopped.kill()
    assert stopped.returncode == 130, said
    assert said.decode().splitlines()[-1] == f"fedgh: stopped; to go on: fedgh run -m resume={sweep}"
    statuses = [job["status"] for job in storage.read_json(sweep / "sweep.json")["jobs"]]
    assert statuses == ["interrupted", "waiting"]

    killed = subprocess.Popen([*command[:3], f"resume={sweep}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        follow(killed, sweep / "1")
        for each in [killed, *psutil.Process(killed.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(each.pid, signal.SIGKILL)
    finally:
        killed.kill()
        killed.wait()
    first = (sweep / "0" / "result.json").stat().st_mtime_ns
    assert not (sweep / "1" / "result.json").exists()

    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "strategy=fedavg: completed before, skipped" in done.stdout
    assert "strategy=fedaw (interrupted before, goes on from its checkpoint)" in done.stdout
    assert (sweep / "0" / "result.json").stat().st_mtime_ns == first
    for job, strategy in (("0", "fedavg"), ("1", "fedaw")):
        plain = [item for item in overrides if "tracking" not in item]
        launch([*plain, f"strategy={strategy}", "tracking=none"], tmp_path / strategy, quiet=True)
        found, whole = (storage.load_model(folder)[0] for folder in (sweep / job, tmp_path / strategy))
        assert all(bool((found[key] == whole[key]).all()) for key in whole)
        assert "group: sweep\n" in (sweep / job / "config.yaml").read_text()
