"""Deployment: what a round of real processes costs beside the training in it.

    python -m benchmarks.deployment [--rounds N] [--json FILE]

A SuperLink and three SuperNodes on loopback, with TLS and SuperNode authentication, train `pose_resnet18` on a few
images each. What a round takes beyond training is its wall time less that of its slowest client, as that client
measured it. Before: Flower's own SuperNode, which starts a Python for every message, and a model that travels array by
array. After: `fedgh deploy supernode`, and a model that travels as one array.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from benchmarks import output
from benchmarks.loopback import Loopback, loopback
from fedgh_app.pose.arms.generated import generate
from fedgh_app.runs import processes, storage
from fedgh_app.runtimes.launcher import launch
from fedgh_app.vision.threads import usable_cores

SITES = ("site-a", "site-b", "site-c")
OVERRIDES = [
    *("runtime=deployment", "partition=site", "num_clients=3", "runtime.client_cpus=1", "evaluate.central_every=0"),
    *("dataset.input_size=[32,32]", "augmentation=none", "tracking=none", "keep_checkpoints=0"),
]


def measure(rounds: int) -> dict[str, Any]:
    """The same rounds before and after.

    Returns:
        For ``before`` and ``after``: ``beyond_seconds``, what each round took beyond training; ``phases``, mean seconds
        of training and evaluation as the server sees them, beyond training too; ``cpu_seconds``, what SuperLink and
        SuperNodes took, without the apps' processes. And ``ratio``, of the medians.
    """
    with tempfile.TemporaryDirectory(prefix="fedgh-bench-") as name:
        folder = Path(name)
        for seed, site in enumerate(SITES):
            generate(folder / "data" / site, count=40, seed=seed, image_size=(96, 96))
        found = {kind: _rounds(folder, kind, rounds) for kind in ("before", "after")}
    median = {kind: statistics.median(values["beyond_seconds"]) for kind, values in found.items()}
    return {**found, "ratio": median["before"] / median["after"], "cores": usable_cores(), "sites": len(SITES)}


def _rounds(folder: Path, kind: str, rounds: int) -> dict[str, Any]:
    machine = folder / kind
    machine.mkdir()
    with loopback(machine, SITES) as federation:
        for site in SITES:
            federation.register(site)
            federation.start(site, folder / "data" / site, warm=kind == "after")
        before = os.environ.get("FLWR_HOME")
        os.environ["FLWR_HOME"] = federation.environment["FLWR_HOME"]
        try:
            packed = f"runtime.packed={str(kind == 'after').lower()}"
            launch([*OVERRIDES, packed, f"rounds={rounds}"], machine / "run", quiet=True)
        finally:
            os.environ.pop("FLWR_HOME")
            if before is not None:
                os.environ["FLWR_HOME"] = before
        cpu = _cpu(federation)
    history = storage.read_lines(machine / "run" / "history.jsonl")[1:]
    trained = [max(client["seconds"] for client in line["train"]["clients"].values()) for line in history]
    seconds = [line["seconds"] for line in history]
    return {
        "beyond_seconds": [each["total"] - own for each, own in zip(seconds, trained, strict=True)],
        "phases": {
            "train": statistics.fmean(each["train"] - own for each, own in zip(seconds, trained, strict=True)),
            "evaluate": statistics.fmean(each["evaluate_clients"] for each in seconds),
        },
        "cpu_seconds": cpu,
    }


def _cpu(federation: Loopback) -> dict[str, float]:
    """CPU seconds of the processes that stay, by what they are."""
    found = {"SuperLink": 0.0, "SuperNodes": 0.0}
    for process in processes.marked(federation.mark):
        command = " ".join(process.cmdline())
        for name, script in (("SuperLink", "flower-superlink"), ("SuperNodes", "flower-supernode")):
            if script in command:
                times: Any = psutil.Process(process.pid).cpu_times()
                found[name] += times.user + times.system
    return found


def table(result: dict[str, Any]) -> Table:
    """The result for a terminal."""
    kinds = ("before", "after")
    title = f"Deployment on loopback: {result['sites']} sites, {result['cores']} cores"
    shown = output.empty_table(title, ("seconds a round beyond training", *kinds))
    for phase in ("train", "evaluate"):
        shown.add_row(f"{phase} phase", *(f"{result[kind]['phases'][phase]:.1f}" for kind in kinds))
    medians = [statistics.median(result[kind]["beyond_seconds"]) for kind in kinds]
    shown.add_row("whole round, median", *(f"[bold]{median:.1f}[/bold]" for median in medians), end_section=True)
    for name in ("SuperLink", "SuperNodes"):
        shown.add_row(f"CPU of {name}, whole run", *(f"{result[kind]['cpu_seconds'][name]:.1f}" for kind in kinds))
    shown.add_row("ratio of the medians", "", f"[bold]{result['ratio']:.1f}[/bold]")
    return shown


def main() -> None:
    """Measure and print."""
    parser = output.parser("deployment", __doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    output.show(arguments.json, result, table(result))


if __name__ == "__main__":
    main()
