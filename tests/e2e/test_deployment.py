"""A federation of real processes: SuperLink and SuperNodes on loopback, with TLS and SuperNode authentication."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from servers import start_fedgh, wait

from benchmarks.loopback import SCRIPTS, Loopback, loopback
from fedgh_app.errors import UserError
from fedgh_app.pose.arms.generated import generate
from fedgh_app.runs import processes, storage
from fedgh_app.runtimes.keys import make_keys
from fedgh_app.runtimes.launcher import launch
from fedgh_app.runtimes.superlink import free_port

SITES = ("site-a", "site-b", "site-c")
PATIENCE = 120.0
# What the federation runs: two rounds that cost less than the processes around them.
OVERRIDES = [
    *("runtime=deployment", "partition=site", "runtime.client_cpus=1", "evaluate.central_every=0"),
    *("model=shufflenet_v2", "model.head_width=8", "dataset.input_size=[32,32]", "augmentation=none", "batch_size=8"),
    *("rounds=2", "tracking=none"),
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """Three registered sites, each with images, a name and a home of its own."""
    folder = tmp_path_factory.mktemp("federation")
    with pytest.MonkeyPatch.context() as patch, loopback(folder, SITES) as made:
        patch.setenv("FLWR_HOME", made.environment["FLWR_HOME"])
        for seed, site in enumerate(SITES):
            generate(folder / "data" / site, count=40, seed=seed, image_size=(96, 96))
            made.register(site)
            made.start(site, folder / "data" / site)
        yield made
    assert list(processes.marked(made.mark)) == []


@pytest.fixture(scope="module")
def finished(federation: Loopback) -> Path:
    """The run directory of two rounds of FedGH."""
    directory = federation.folder / "run"
    ended, seen = threading.Event(), set[int]()

    def watch() -> None:
        while not ended.wait(0.2):
            seen.update(answering(federation))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        launch([*OVERRIDES, "strategy=fedgh", "num_clients=3", "evaluate.clients_every=2"], directory, quiet=True)
    finally:
        ended.set()
        watching.join()
    assert seen, "no ClientApp was seen at work, so that seeing none later says nothing"
    return directory


def test_three_sites_train_together(federation: Loopback, finished: Path) -> None:
    result = storage.read_json(finished / "result.json")
    assert (result["rounds"], result["rejected"], result["evaluated"]) == (2, [], "clients")
    assert list(result["clients"]) == list(SITES)
    assert [client["examples"] for client in result["clients"].values()] == [32, 32, 32]
    assert result["pck"] is not None
    history = storage.read_lines(finished / "history.jsonl")
    assert [line["round"] for line in history] == [0, 1, 2]
    assert history[2]["strategy"]["clients"] == list(SITES)
    assert storage.load_model(finished)[1]["rounds"] == "2"
    assert "round 2/2" in (finished / "flower.log").read_text()
    # Both parties of the deployment outlive the run, whose processes are gone.
    assert federation.superlink.poll() is None
    assert all(node.poll() is None for node in federation.nodes.values())
    wait(lambda: not answering(federation), "the ClientApps to end", PATIENCE)
    wait(lambda: not serving(federation), "the ServerApp to end", PATIENCE)


def commands(federation: Loopback) -> dict[int, tuple[int, str]]:
    """Parent and command line of every process of the deployment."""
    found = {}
    for process in processes.marked(federation.mark):
        with contextlib.suppress(psutil.Error):
            found[process.pid] = process.ppid(), " ".join(process.cmdline())
    return found


def answering(federation: Loopback) -> set[int]:
    """The ClientApps: what a site's fork server has forked, whose command line is the fork server's own."""
    found = commands(federation)
    return {pid for pid, (parent, _) in found.items() if "multiprocessing.forkserver" in found.get(parent, (0, ""))[1]}


def serving(federation: Loopback) -> set[int]:
    """The ServerApps."""
    return {pid for pid, (_, command) in commands(federation).items() if "flwr-serverapp" in command}


def test_what_a_site_holds_stays_in_its_own_home(federation: Loopback, finished: Path) -> None:
    for site in SITES:
        assert list((federation.folder / site / "cache" / "crops").rglob("*"))
    assert not (federation.folder / "cache").exists()


STRANGERS = {
    "unregistered key": ("Failed to activate SuperNode", "--root-certificates={ca} --auth-supernode-private-key={new}"),
    "no TLS": ("Server disconnected|Connection reset by peer", "--insecure --max-retries=0"),  # as the sockets race
    "key without TLS": ("requires a secure TLS connection", "--insecure --auth-supernode-private-key={key}"),
    "no key": ("All SuperNodes must be registered via the CLI", "--root-certificates={ca}"),
    "another authority": ("CERTIFICATE_VERIFY_FAILED", "--root-certificates={other} --max-retries=0"),
}


@pytest.mark.parametrize(
    "stranger",
    [
        *("unregistered key", "no TLS"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("key without TLS", "no key", "another authority")),
    ],
)
def test_a_node_that_is_not_one_of_the_sites_is_refused(federation: Loopback, tmp_path: Path, stranger: str) -> None:
    make_keys(tmp_path / "keys", ["localhost"], ["stranger"])
    reason, options = STRANGERS[stranger]
    files = {
        "ca": federation.keys / "server" / "ca.crt",
        "key": federation.keys / "site-a" / "supernode.key",
        "other": tmp_path / "keys" / "server" / "ca.crt",
        "new": tmp_path / "keys" / "stranger" / "supernode.key",
    }
    command = [SCRIPTS / "flower-supernode", f"--superlink={federation.address}", f"--port={free_port()}"]
    done = subprocess.run(
        [*command, "--isolation=process", *(option.format_map(files) for option in options.split())],
        env=federation.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert re.search(reason, done.stdout + done.stderr)


def test_who_is_missing_is_told_by_name(federation: Loopback, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_clients=4: .* site-a, site-b, site-c; .*not connected: none; expected 4"):
        launch([*OVERRIDES, "num_clients=4", "runtime.node_timeout=1"], tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"num_clients=2: connected: site-a, site-b, site-c; .* expected 2 connected"):
        launch([*OVERRIDES, "num_clients=2"], tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"runtime.superlink=elsewhere: .*\[superlink.elsewhere\]"):
        launch([*OVERRIDES, "runtime.superlink=elsewhere"], tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"dataset.root=.*evaluate.central_every=0"):
        nowhere = ["evaluate.central_every=1", f"dataset.root={tmp_path}/nowhere"]
        launch([*OVERRIDES, *nowhere], tmp_path / "run", quiet=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_stopped_goes_on_and_the_sites_stay(federation: Loopback, finished: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the run on the SuperLink too; resumed, it ends with the bits of a run that was never stopped."""
    own = ["num_clients=3", "sharing=fedbn"]
    launch([*OVERRIDES, *own], tmp_path / "whole", quiet=True)
    process = start_fedgh(tmp_path, "run", "run_dir=run", *OVERRIDES, *own, env=federation.environment)
    wait(lambda: len(storage.read_lines(tmp_path / "run/history.jsonl")) > 1, "the first round", PATIENCE)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert "fedgh run resume=" in said
    wait(lambda: not serving(federation), "the ServerApp to end", PATIENCE)
    assert all(node.poll() is None for node in federation.nodes.values())
    launch([*OVERRIDES, *own, f"resume={tmp_path}/run"], tmp_path / "run", quiet=True)
    first, second = (storage.load_model(tmp_path / name)[0] for name in ("run", "whole"))
    assert all(bool((first[key] == second[key]).all()) for key in first)
