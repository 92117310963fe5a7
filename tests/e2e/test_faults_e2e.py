"""The faults of docs/faults.md injected in real runs: Flower's processes, Ray, W&B's service."""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import TINY
from faults import FAULTS
from servers import SCRIPTS, environment, fedgh, left_behind, start_fedgh, survivors, wait

from benchmarks.loopback import FEDGH as FEDGH_PLAIN
from fedgh_app.pose.arms.generated import generate
from fedgh_app.runs import storage
from fedgh_app.runs.checkpoints import newest
from fedgh_app.runs.processes import MARK, end_marked
from fedgh_app.runtimes.superlink import free_port, wait_until_up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TESTS = Path(__file__).resolve().parents[1]

# `fedgh`, but for the copy of the app that it stages, which ``change`` makes a faulty one.
FEDGH = f"""
import strategies  # before tests/strategies would stand for it
import sys
sys.path.append({str(TESTS)!r})
import faults
from fedgh_app.runtimes import flwr_run
from fedgh_app.cli import main
stage = flwr_run.stage

def stage_faulty(*arguments):
    app = stage(*arguments)
    {{change}}
    return app

flwr_run.stage = stage_faulty
sys.argv[0] = "fedgh"
main()
"""

# Round and client; two clients may fail in one round.
PLAN = {
    (1, "0"): "nan",
    (1, "1"): "missing key",
    (2, "3"): "sleeps",
    (3, "0"): "raises",
    (3, "1"): "wrong shape",
    (4, "0"): "wrong dtype",
    (4, "1"): "no examples",
    (5, "0"): "negative examples",
    (5, "1"): "too many examples",
    (6, "0"): "long update",
    (7, "1"): "long statistics",
    (7, "2"): "truncated",
    (8, "0"): "infinity",
}


def faulty(change: str, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`fedgh` with a faulty app, to its end."""
    program = [sys.executable, "-c", FEDGH.format(change=change)]
    return fedgh(folder, *arguments, program=program, env=environment(**variables), seconds=550)


def test_bad_replies_and_a_client_that_never_answers_in_a_simulation(home: Path, tmp_path: Path) -> None:
    """All of them in one run, which ends though one client's function never does."""
    overrides = [*TINY, "rounds=8", "round_timeout=40", "evaluate.clients_every=0", "evaluate.central_every=0"]
    started = time.monotonic()
    done = faulty(f"faults.stage(app, {PLAN})", tmp_path, "run", "run_dir=run", *overrides)
    print(done.stdout, f"{time.monotonic() - started:.0f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert left_behind() == []
    history = storage.read_lines(tmp_path / "run" / "history.jsonl")
    words = {"raises": "out of memory", "sleeps": "no reply within the time it had"}
    words |= {kind: reason for kind, (_, reason) in FAULTS.items()}
    found = {(item["round"], item["client"]): item["reason"] for line in history for item in line["rejected"]}
    assert found.keys() == PLAN.keys()
    said = (tmp_path / "run" / "flower.log").read_text()
    for place, reason in found.items():
        assert words[PLAN[place]] in reason
        assert f"round {place[0]}: rejected client {place[1]}: {reason}" in said
        assert re.sub(r"\s+", "", reason) in re.sub(r"[\s│]+", "", done.stdout.partition("rejected replies")[2])
    assert [line["absent"] for line in history[3:]] == [{"3": "it owes a reply"}] * 6
    assert storage.read_json(tmp_path / "run" / "result.json")["rejected"] == [
        item for line in history for item in line["rejected"]
    ]
    state, _ = storage.load_model(tmp_path / "run")
    assert all(bool(tensor.float().isfinite().all()) for tensor in state.values())


SHORT = [*TINY, "rounds=3", "evaluate.clients_every=0", "evaluate.central_every=0"]


def failed(done: subprocess.CompletedProcess[str], directory: Path, checkpoint: int) -> str:
    """The one line of a run that failed, and left its last good model and checkpoint, and no process."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert left_behind() == []
    (line,) = done.stderr.strip().splitlines()
    assert line.endswith(f"; to go on: fedgh run resume='{directory}')")
    assert newest(directory, 3).name == f"round-000{checkpoint}.json"
    kept, _ = storage.load_model(newest(directory, 3).with_suffix(".safetensors"))
    assert all(bool(tensor.float().isfinite().all()) for tensor in kept.values())
    assert not list(directory.rglob("*.part"))
    return line


@pytest.mark.parametrize("how", ["killed", "terminated"])
def test_a_client_process_that_is_killed_ends_a_simulation_with_its_checkpoint(
    home: Path, tmp_path: Path, how: str
) -> None:
    done = faulty(f"faults.stage(app, {{(2, '1'): {how!r}}})", tmp_path, "run", "run_dir=run", *SHORT)
    line = failed(done, tmp_path / "run", 1)
    assert "round 2: the process of client 1 died, and Flower's simulation does not replace it" in line
    assert storage.load_model(tmp_path / "run")[1]["rounds"] == "1"


ENDINGS = {
    "disk full": ("faults.fill_disk(app, 2)", [], r"round 2: a file of the run could not be written: .*File too large"),
    "overflow": (
        "faults.stage(app, {(2, name): 'grows' for name in '0123'})",
        ["strategy=fedavg", "server_optimizer=sgd", "server_optimizer.lr=1000"],
        r"round 2: aggregation made NaN or infinity of finite updates, in \S+;",
    ),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_what_ends_a_simulation_is_one_line_and_leaves_the_last_good_checkpoint(
    home: Path, tmp_path: Path, kind: str
) -> None:
    """Tracked by a W&B server that accepts connections and never answers."""
    change, overrides, words = ENDINGS[kind]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        wandb = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
        done = faulty(change, tmp_path, "run", "run_dir=run", *SHORT, *overrides, "tracking=wandb", **wandb)
    assert re.search(words, failed(done, tmp_path / "run", 1))
    assert storage.read_json(tmp_path / "run" / "tracking.json")["mode"] == "offline"
    assert f"W&B at {address} does not answer within 5 seconds" in (tmp_path / "run" / "flower.log").read_text()


def test_a_server_that_is_killed_is_one_line_and_goes_on(home: Path, tmp_path: Path) -> None:
    """The simulation's process is killed in mid-round; `fedgh run` itself lives."""
    process = start_fedgh(tmp_path, "run", "run_dir=run", *SHORT)
    wait((tmp_path / "run" / "checkpoints" / "round-0001.json").exists, "round 1", 300)
    (server,) = [found for found in survivors() if "flwr-simulation" in " ".join(found.cmdline())]
    killed = time.monotonic()
    server.kill()
    said, errors = process.communicate(timeout=400)
    print(f"noticed after {time.monotonic() - killed:.0f} s", errors)
    failed(subprocess.CompletedProcess([], process.returncode, said, errors), tmp_path / "run", 1)
    done = fedgh(tmp_path, "run", "resume=run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["round"] for line in storage.read_lines(tmp_path / "run" / "history.jsonl")] == [0, 1, 2, 3]


SITES = ("a", "b", "c", "d")


@dataclass
class Deployment:
    """A SuperLink and SuperNodes on loopback that know no keys: a SuperNode that restarts is another node."""

    folder: Path
    port: int
    environment: dict[str, str]
    superlink: subprocess.Popen[bytes]
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, site: str) -> None:
        """Start a site's SuperNode, with the executor that `fedgh deploy supernode` puts beside it."""
        command = [*FEDGH_PLAIN, "deploy", "supernode", "--insecure", f"--superlink=127.0.0.1:{self.port}"]
        home = self.folder / site
        with (self.folder / f"{site}.log").open("ab") as log:
            self.nodes[site] = subprocess.Popen(
                [*command, f"--port={free_port()}", f'--node-config=name="{site}" data-root="{self.folder / site}"'],
                env={**self.environment, "FLWR_HOME": str(home / "flwr"), "FEDGH_HOME": str(home / "home")},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self, site: str, number: signal.Signals) -> None:
        """Send a signal to a site's SuperNode, and wait until it and what it started are gone."""
        node = psutil.Process(self.nodes[site].pid)
        below = node.children(recursive=True)
        node.send_signal(number)
        self.nodes[site].wait(30)
        psutil.wait_procs(below, timeout=10)
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def sent(self, site: str) -> int:
        """How many replies a site has sent."""
        return (self.folder / f"{site}.log").read_text().count("Sent successfully")


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    port, mark = free_port(), secrets.token_hex(8)
    variables = environment(**{MARK: mark}, FLWR_HOME=str(tmp_path / "flwr"), FLWR_TELEMETRY_ENABLED="0")
    (tmp_path / "flwr").mkdir()
    address = f'[superlink.fedgh]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (tmp_path / "flwr" / "config.toml").write_text(address)
    command = [
        SCRIPTS / "flower-superlink",
        "--insecure",
        f"--port={port}",
        "--disable-runtime-dependency-installation",
    ]
    with (tmp_path / "superlink.log").open("wb") as log:
        superlink = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)
    made = Deployment(tmp_path, port, variables, superlink)
    try:
        wait_until_up(superlink, port)
        for seed, site in enumerate(SITES):
            generate(tmp_path / site, count=20, seed=seed, image_size=(96, 96))
            made.start(site)
        yield made
    finally:
        end_marked(mark)
        for process in (*made.nodes.values(), superlink):
            process.wait()


@pytest.mark.timeout(1500)
def test_processes_and_nodes_that_die_in_a_deployment(deployment: Deployment) -> None:
    """In round 1 a client raises; in round 2 the process of one is terminated and that of another killed; in round 3
    one never answers, and two SuperNodes leave after their replies. Then one of four is left of the two that a round
    needs: the server waits for the first to come back, which is the silent one, killed and started again."""
    folder = deployment.folder
    plan = {(1, "a"): "raises", (2, "b"): "terminated", (2, "c"): "killed", (3, "a"): "sleeps"}
    overrides = [*TINY, "runtime=deployment", "partition=site", "num_clients=4", "min_clients=2", "round_timeout=120"]
    overrides += ["evaluate.clients_every=0", "evaluate.central_every=0", "runtime.client_gpus=0"]
    overrides += ["runtime.client_cpus=1"]
    whole = [*overrides, "runtime.node_timeout=120", "rounds=6"]
    program = [sys.executable, "-c", FEDGH.format(change=f"faults.stage(app, {plan})")]
    process = start_fedgh(folder, "run", "run_dir=run", *whole, program=program, env=deployment.environment)

    def history() -> list[dict[str, Any]]:
        assert process.poll() is None or process.returncode == 0, process.communicate()
        return storage.read_lines(folder / "run" / "history.jsonl")

    wait(lambda: len(history()) > 2, "round 2", 600)
    wait(lambda: min(deployment.sent("b"), deployment.sent("c")) >= 4, "replies of round 3")
    for site in ("b", "c"):
        deployment.stop(site, signal.SIGTERM)
    wait(lambda: len(history()) > 3, "round 3")
    deployment.stop("a", signal.SIGKILL)
    deployment.start("a")
    wait(lambda: len(history()) > 4, "round 4, with a under another id")
    deployment.start("b")
    said, errors = process.communicate(timeout=400)
    print(said)
    assert process.returncode == 0, errors
    lines = storage.read_lines(folder / "run" / "history.jsonl")
    found = {(item["round"], item["client"]): item["reason"] for line in lines for item in line["rejected"]}
    assert {place: reason for place, reason in found.items() if place[0] <= 3}.keys() == plan.keys()
    assert "MemoryError" in found[1, "a"]
    assert "its process was told to end while it was at work (SIGTERM)" in found[2, "b"]
    assert found[2, "c"] == "ClientApp stopped responding."
    assert found[3, "a"] == "no reply within the time it had"
    assert all(reason in said for reason in found.values())
    trained = [line["strategy"].get("clients") for line in lines[1:]]
    assert trained[:3] == [["b", "c", "d"], ["a", "d"], ["b", "c", "d"]]
    assert trained[3] == ["a", "d"]
    assert lines[4]["absent"].keys() == {"b", "c"}

    # Who is missing is told where a round finds too few.
    deployment.start("c")
    few = ["rounds=100", "min_clients=4", "runtime.node_timeout=60"]
    process = start_fedgh(folder, "run", "run_dir=again", *overrides, *few, env=deployment.environment)
    again = folder / "again" / "history.jsonl"
    wait(lambda: len(storage.read_lines(again)) > 2, "two rounds")
    deployment.stop("d", signal.SIGTERM)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 1
    (line,) = errors.strip().splitlines()
    assert re.search(r"round \d+: 3 (of 4 clients can be asked|good replies).* expected at least 4 .*client d: ", line)
    assert newest(folder / "again", 100).exists()
