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

from fedgh_app import storage
from fedgh_app.launcher import launch

FEDGH = str(Path(sysconfig.get_path("scripts")) / "fedgh")


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tiny: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    overrides = [item for item in tiny if item not in ("rounds=2", "tracking=none")]
    overrides += ["rounds=3", "tracking.mode=offline", "evaluate.clients_every=0"]
    command = [FEDGH, "run", "-m", "strategy=fedavg,fedaw", f"run_dir={sweep}", *overrides]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 200
        while not storage.read_lines(sweep / "1" / "history.jsonl")[1:]:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        for each in [process, *psutil.Process(process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(each.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    first = (sweep / "0" / "result.json").stat().st_mtime_ns
    assert not (sweep / "1" / "result.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "strategy=fedavg: completed before, skipped" in done.stdout
    assert "strategy=fedaw (interrupted before, goes on from its checkpoint)" in done.stdout
    assert (sweep / "0" / "result.json").stat().st_mtime_ns == first
    launch(
        [*filter(lambda item: "tracking" not in item, overrides), "strategy=fedaw", "tracking=none"],
        tmp_path / "whole",
        quiet=True,
    )
    found, whole = (storage.load_model(folder)[0] for folder in (sweep / "1", tmp_path / "whole"))
    assert all(bool((found[key] == whole[key]).all()) for key in whole)
    for job in ("0", "1"):
        assert "group: sweep\n" in (sweep / job / "config.yaml").read_text()
